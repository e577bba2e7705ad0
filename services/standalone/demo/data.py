"""Real data that ships in scikit-learn, as a person would find it: a table with dirt in it, and pictures in folders."""

import csv
import io
import random
import zipfile
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_breast_cancer, load_digits

SPELLINGS = {"M": ("M", "m", " M", "malignant"), "B": ("B", "b", "B ", "benign")}


def dirty_table(seed: int = 7) -> bytes:
    """The breast cancer table as CSV: 569 rows and 30 repeats of some, 3 % of cells missing, the diagnosis spelt in several ways."""
    chance = random.Random(seed)
    data: Any = load_breast_cancer()
    names = [name.replace(" ", "_") for name in data.feature_names]
    rows = []
    for values, benign in zip(data.data, data.target, strict=True):
        cells = ["" if chance.random() < 0.03 else repr(float(value)) for value in values]
        rows.append([*cells, chance.choice(SPELLINGS["B" if benign else "M"])])
    for row in chance.sample(rows, 4):
        row[-1] = ""
    rows += [list(row) for row in chance.sample(rows, 30)]
    chance.shuffle(rows)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[*names, "Diagnosis"], *rows])
    return text.getvalue().encode()


def pictures() -> bytes:
    """The 1,797 handwritten digits as a ZIP of PNG files of 8 × 8 pixels, in a folder a digit."""
    digits: Any = load_digits()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as files:
        for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            png = io.BytesIO()
            Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(png, "PNG")
            files.writestr(f"digits/{label}/{number:04}.png", png.getvalue())
    return archive.getvalue()


def a_picture(index: int) -> tuple[bytes, str]:
    """One of the digits as a PNG file, and what it shows."""
    digits: Any = load_digits()
    png = io.BytesIO()
    Image.fromarray((digits.images[index] * 255 / 16).astype(np.uint8)).save(png, "PNG")
    return png.getvalue(), str(digits.target[index])


def a_row(index: int) -> tuple[dict[str, float], str]:
    """One of the table's rows as a record, and its diagnosis."""
    data: Any = load_breast_cancer()
    names = [name.replace(" ", "_") for name in data.feature_names]
    return dict(zip(names, map(float, data.data[index]), strict=True)), "B" if data.target[index] else "M"
