import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from libs.errors import Invalid
from libs.modelkit import pixels
from libs.modelkit.preprocessing import fit_images


def file(image: Image.Image, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


GREY = (np.arange(64).reshape(8, 8) * 4).astype(np.uint8)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32), np.uint8))


def fitted():
    return fit_images("image", np.stack([GREY[:, :, None], 255 - GREY[:, :, None]]))


def test_base64_data_urls_and_rows_of_pixels_are_the_same_picture():
    encoded = base64.b64encode(file(Image.fromarray(GREY))).decode()
    records = [
        {"image": encoded},
        {"image": f"data:image/png;base64,{encoded}"},
        {"image": GREY.tolist()},
        {"image": GREY[:, :, None].tolist()},
    ]
    arrays = fitted().records_to_arrays(records)
    assert arrays.shape == (4, 1, 8, 8)
    assert (arrays == arrays[0]).all()


def test_other_sizes_and_colours_are_brought_to_the_models():
    big = base64.b64encode(file(Image.new("RGB", (32, 20), (200, 10, 10)), "JPEG")).decode()
    assert fitted().records_to_arrays([{"image": big}]).shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("not base64!", "not base64"),
        (base64.b64encode(b"GIF89a").decode(), "not a PNG or JPEG"),
        (base64.b64encode(file(NOISE)[:600]).decode(), "damaged"),
        ([[1, 2], [3]], "different length"),
        ([[300]], "outside 0-255"),
        ([["a"]], "not rows of pixels"),
        ([], "not rows of pixels"),
        (None, "not rows of pixels"),
        (5, "not rows of pixels"),
        ({"a": 1}, "not rows of pixels"),
        ([[[1, 2]]], "channels"),
    ],
)
def test_what_is_no_picture_is_named(value, words):
    with pytest.raises(Invalid) as caught:
        fitted().records_to_arrays([{"image": GREY.tolist()}, {"image": value}])
    assert caught.value.errors[0].field == "instances[1].image"
    assert words in caught.value.errors[0].message


def test_a_bomb_is_refused_by_its_header():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    with pytest.raises(ValueError, match=r"PNG or JPEG|pixels"):
        pixels.open_image(b"\x89PNG\r\n\x1a\n" + chunk)


def test_shape_is_the_most_common_size_and_bounded():
    files = [file(Image.new("L", (8, 6)))] * 3 + [file(Image.new("L", (9, 9)))]
    assert pixels.choose_shape(files) == (6, 8, 1)
    assert pixels.choose_shape([file(Image.new("RGB", (640, 320)))]) == (32, 64, 3)
    assert pixels.choose_shape(files, side=16) == (16, 16, 1)
