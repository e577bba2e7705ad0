"""What raw rows go through before a model sees them: fitted on training rows, kept as plain JSON, the same for tables and records.

Numbers: missing ones become the median, then (x - mean) / scale in double precision. Texts in tables: one-hot with a place for the
unknown. Texts as texts: tokens; to be written: bytes. Pictures: one size, (x / 255 - mean) / scale a channel. Numpy only.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libs.errors import Invalid, Violation
from libs.modelkit import text
from libs.modelkit.raw import NUMERIC_TYPES, Raw, from_columns
from libs.modelkit.records import RecordReader

MAX_CATEGORIES = 100
MAX_WIDTH = 20_000


class Preprocessing:
    """Fitted preprocessing. `data` is its JSON: {"kind": "table" | "text" | "bytes" | "image", "inputs": [...], ...}."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = dict(data)
        self.kind: str = data["kind"]
        self.inputs: list[dict[str, Any]] = list(data["inputs"])
        self.reader = RecordReader(self.inputs)
        self._place()

    def _place(self) -> None:
        """Where each input's features go in a row, and the numbers' figures as vectors."""
        self._at: dict[str, int] = {}
        width = 0
        for field in self.inputs:
            self._at[field["name"]] = width
            width += len(field["values"]) + 1 if "values" in field else 1
        self._width = width
        numeric = [field for field in self.inputs if field["type"] in NUMERIC_TYPES]
        self._positions = np.array([self._at[field["name"]] for field in numeric], int)
        self._fill, self._mean, self._scale = (np.array([f[key] for f in numeric], np.float64) for key in ("fill", "mean", "scale"))
        self._codes = {f["name"]: {value: i for i, value in enumerate(f["values"])} for f in self.inputs if "values" in f}
        if self.kind == "text":
            self._tokens = {token: i for i, token in enumerate(self.data["vocabulary"], text.FIRST)}
        if self.kind == "image":
            # There are only 256 pixels, so each channel's figures are a table: the same numbers in one pass.
            mean, scale = (np.array(self.data[key], np.float32)[:, None] for key in ("mean", "scale"))
            self._shades = (np.arange(256, dtype=np.float32) / 255 - mean) / scale

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row as the model sees it: (features,), (tokens,) or (channels, height, width)."""
        if self.kind == "table":
            return (self._width,)
        if self.kind in ("text", "bytes"):
            return (self.data["length"],)
        height, width, channels = self.inputs[0]["shape"]
        return channels, height, width

    @property
    def tokens(self) -> int:
        """How many token numbers there are; 0 where rows are no tokens."""
        if self.kind == "bytes":
            return text.BYTES
        return len(self.data["vocabulary"]) + text.FIRST if self.kind == "text" else 0

    @property
    def scales(self) -> NDArray[np.float64]:
        """[features]: how many of the column's own units one unit of the feature is."""
        scales = np.ones(self._width)
        scales[self._positions] = self._scale
        return scales

    def transform(self, raw: Raw) -> NDArray[Any]:
        """float64 [N, features], int64 [N, tokens], or float32 [N, channels, height, width]."""
        if self.kind == "text":
            return text.encode(self._texts(raw), self._tokens, self.data["length"])
        if self.kind == "bytes":
            return text.encode_bytes([text.to_bytes(each) for each in self._texts(raw)], self.data["length"])
        if self.kind == "image":
            assert raw.pixels is not None
            images = np.empty((raw.rows, *self.shape), np.float32)
            for channel, shades in enumerate(self._shades):
                np.take(shades, raw.pixels[..., channel], out=images[:, channel], mode="clip")
            return images
        numbers = (np.where(np.isnan(raw.numbers), self._fill, raw.numbers) - self._mean) / self._scale
        if not self._codes:
            return numbers
        features = np.zeros((raw.rows, self._width))
        features[:, self._positions] = numbers
        for name, codes in self._codes.items():
            chosen = [codes.get(value, len(codes)) for value in raw.strings[name]]
            features[np.arange(raw.rows), self._at[name] + np.array(chosen, int)] = 1
        return features

    def blank(self, rows: int) -> Raw:
        """Rows of zeros and empty texts."""
        numeric = sum(field["type"] in NUMERIC_TYPES for field in self.inputs)
        strings = {field["name"]: np.full(rows, "", object) for field in self.inputs if field["type"] == "string"}
        pixels = np.zeros((rows, *self.inputs[0]["shape"]), np.uint8) if self.kind == "image" else None
        return Raw(np.zeros((rows, numeric)), strings, pixels)

    def from_columns(self, columns: Mapping[str, NDArray[Any]]) -> Raw:
        """Rows of a table, as `tables.read_columns` gives them; pictures are decoded."""
        if self.kind == "image":
            return Raw(np.empty((0, 0)), {}, decode_column(columns[self.inputs[0]["name"]], self.inputs[0]["shape"]))
        return from_columns(self.inputs, columns)

    def records_to_arrays(self, instances: Sequence[Mapping[str, Any]]) -> NDArray[Any]:
        """As `transform`, from raw records; raises `Invalid` naming each wrong field (`instances[3].radius`)."""
        return self.transform(self.reader.read(instances))

    def _texts(self, raw: Raw) -> list[str]:
        columns = [raw.strings[field["name"]] for field in self.inputs]
        return [" ".join(cell or "" for cell in cells) for cells in zip(*columns, strict=True)]


def fit_table(columns: Mapping[str, NDArray[Any]], types: Mapping[str, str]) -> Preprocessing:
    """From training rows: `columns` as `tables.read_columns` gives them, `types` of those in the order the model shall see them."""
    inputs = [_fit_column(name, kind, columns[name]) for name, kind in types.items()]
    fitted = Preprocessing({"kind": "table", "inputs": inputs})
    if fitted.shape[0] > MAX_WIDTH:
        raise _unusable("features", f"the columns make {fitted.shape[0]} features, more than {MAX_WIDTH}; leave some out of features")
    return fitted


def fit_text(columns: Mapping[str, NDArray[Any]], names: Sequence[str], vocabulary: int, max_length: int) -> Preprocessing:
    """Several columns of texts are read as one, in order. The length is that of the longest training text, at most `max_length`."""
    inputs = [{"name": name, "type": "string", "optional": _lacks_some(columns[name])} for name in names]
    texts = [" ".join(cell or "" for cell in cells) for cells in zip(*(columns[name] for name in names), strict=True)]
    longest = max((len(text.tokenise(item)) for item in texts), default=1)
    words = text.learn_vocabulary(texts, vocabulary)
    return Preprocessing({"kind": "text", "inputs": inputs, "vocabulary": words, "length": max(1, min(longest, max_length))})


def fit_bytes(name: str, length: int) -> Preprocessing:
    """A column of texts that are to be gone on with; of a longer one the last `length` bytes are read."""
    return Preprocessing({"kind": "bytes", "inputs": [{"name": name, "type": "string", "optional": False}], "length": length})


def fit_images(name: str, images: NDArray[np.uint8]) -> Preprocessing:
    """From decoded training pictures, uint8 [N, height, width, channels]."""
    shape = list(images.shape[1:])
    parts = [images[..., channel] / np.float32(255) for channel in range(shape[2])]
    field = {"name": name, "type": "image", "optional": False, "shape": shape}
    mean = [float(part.mean(dtype=np.float64)) for part in parts]
    scale = [float(part.std(dtype=np.float64)) or 1.0 for part in parts]
    return Preprocessing({"kind": "image", "inputs": [field], "mean": mean, "scale": scale})


def choose_shape(name: str, files: Sequence[bytes], side: int = 0) -> tuple[int, int, int]:
    """(height, width, channels) for pictures: `side` squared where it is not 0, else their most common size, at most 64 a side."""
    from libs.modelkit import pixels  # Pillow is 8 MB that a replica of a table's model does not need

    try:
        return pixels.choose_shape(files[:1000], side)
    except ValueError as error:
        raise _unusable(name, f"a picture among the first 1000 {error}") from error


def decode_column(files: Sequence[bytes] | NDArray[np.object_], shape: Sequence[int]) -> NDArray[np.uint8]:
    """uint8 [N, height, width, channels] from PNG and JPEG files."""
    from libs.modelkit import pixels  # as above

    size = (shape[0], shape[1], shape[2])
    images = np.empty((len(files), *size), np.uint8)
    for row, data in enumerate(files):
        try:
            images[row] = pixels.decode(data, size)
        except ValueError as error:
            raise _unusable(f"row {row}", f"the picture in row {row} {error}") from error
    return images


def _fit_column(name: str, kind: str, values: NDArray[Any]) -> dict[str, Any]:
    field: dict[str, Any] = {"name": name, "type": kind, "optional": _lacks_some(values)}
    if kind not in NUMERIC_TYPES:
        return {**field, **_fit_categories(values)}
    if np.isinf(values).any():
        raise _unusable(name, f"'{name}' has infinite values; replace or drop them with a transform")
    there = values[~np.isnan(values)]
    fill = float(np.median(there)) if len(there) else 0.0
    mean, scale = spread(np.where(np.isnan(values), fill, values))
    return {**field, "fill": fill, "mean": mean, "scale": scale}


def spread(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and standard deviation, also of values near the ends of the double's range; a constant has the scale 1."""
    largest = float(np.abs(values).max(initial=0)) or 1.0
    unit = 2.0 ** np.floor(np.log2(largest)) if not 1e-100 < largest < 1e100 else 1.0
    mean = float(np.mean(values / unit)) * unit
    off = values / unit - mean / unit
    scale = float(np.sqrt(np.mean(off * off))) * unit
    return mean, scale if scale > abs(mean) * 1e-15 and values.max() > values.min() else 1.0


def _fit_categories(values: NDArray[np.object_]) -> dict[str, Any]:
    known, counts = np.unique(np.array([v for v in values if v is not None], dtype=str), return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MAX_CATEGORIES]
    return {"values": sorted(known[order].tolist()), "more": len(known) > MAX_CATEGORIES}


def _lacks_some(values: NDArray[Any]) -> bool:
    return any(v is None for v in values) if values.dtype == object else bool(np.isnan(values).any())


def _unusable(at: str, message: str) -> Invalid:
    return Invalid.of([Violation(at, message)], code="invalid_data")
