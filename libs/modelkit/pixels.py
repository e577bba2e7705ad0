"""Pictures to arrays: PNG and JPEG bytes, base64 or rows of pixels, brought to one size and number of channels.

Parses untrusted bytes: two formats, and a bound on the pixels before anything is decoded.
"""

import base64
import binascii
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_PIXELS = 50_000_000
_GREY = ("1", "L", "LA", "I", "I;16", "F")
Shape = tuple[int, int, int]


def open_image(data: bytes) -> Image.Image:
    """An image whose header was read; raises ValueError in words."""
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError("is not a PNG or JPEG file") from error
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"has {image.width}x{image.height} pixels; at most {MAX_PIXELS} are read")
    return image


def choose_shape(files: Sequence[bytes], side: int = 0, largest: int = 64) -> Shape:
    """[height, width, channels] for a set of pictures: `side` squared where given, else the most common size, at most `largest` a side."""
    images = [open_image(data) for data in files]
    channels = 1 if all(image.mode in _GREY for image in images) else 3
    if side:
        return side, side, channels
    (width, height), _ = Counter(image.size for image in images).most_common(1)[0]
    shrink = min(1.0, largest / max(width, height))
    return max(4, round(height * shrink)), max(4, round(width * shrink)), channels


def decode(data: bytes, shape: Shape) -> NDArray[np.uint8]:
    """uint8 [height, width, channels] from a PNG or JPEG file; raises ValueError in words."""
    image = open_image(data)
    try:
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError("is damaged or cut off") from error
    return _fit(image, shape)


def decode_base64(text: str, shape: Shape) -> NDArray[np.uint8]:
    """As `decode`, from base64, with or without a `data:image/png;base64,` in front."""
    body = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return decode(base64.b64decode(body, validate=True), shape)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError("is not base64") from error


def from_rows(rows: Any, shape: Shape) -> NDArray[np.uint8]:
    """uint8 [height, width, channels] from nested rows of pixels 0-255: [height][width] or [height][width][channels]."""
    try:
        pixels = np.asarray(rows)
    except ValueError as error:
        raise ValueError("has rows of different length") from error
    return from_array(pixels, shape)


def from_array(pixels: NDArray[Any], shape: Shape) -> NDArray[np.uint8]:
    """As `from_rows`, from an array of any numeric type."""
    if pixels.dtype.kind not in "uif" or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise ValueError("is not rows of pixels: [height][width] or [height][width][channels] of numbers 0-255")
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3):
        raise ValueError(f"has {pixels.shape[2]} channels; it may have 1 or 3")
    if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 255):
        raise ValueError("has pixels outside 0-255")
    exact = np.rint(pixels).astype(np.uint8)
    if exact.ndim == 2:
        exact = exact[:, :, None]
    if exact.shape == shape:
        return exact
    return _fit(Image.fromarray(exact[:, :, 0] if exact.shape[2] == 1 else exact), shape)


def _fit(image: Image.Image, shape: Shape) -> NDArray[np.uint8]:
    height, width, channels = shape
    if image.mode in ("I;16", "I", "F"):
        image = Image.fromarray(np.clip(np.asarray(image, np.float64) / (257 if image.mode != "F" else 1), 0, 255).astype(np.uint8))
    mode = "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8).reshape(shape)
