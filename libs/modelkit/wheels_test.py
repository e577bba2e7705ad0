"""Wheels that mean harm or do not fit are refused in words, at their line; those that fit are imported in the sandbox, and there alone."""

import io
import json
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import markupsafe
import numpy as np
import pytest
from packaging.tags import sys_tags

from libs.errors import AppError, Invalid
from libs.modelkit import archive, custom, guest, image, wheels
from libs.modelkit.package import MODEL
from libs.modelkit.runtime import load_any

SAID = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more}"


def wheel(
    name: str = "shouter",
    version: str = "1.0",
    tag: str = "py3-none-any",
    *,
    requires: tuple[str, ...] = (),
    files: Mapping[str, bytes] | None = None,
    said: str = "",
    more: str = "",
) -> dict[str, bytes]:
    """A wheel, by its file's name."""
    info = f"{name}-{version}.dist-info"
    more += "".join(f"Requires-Dist: {each}\n" for each in requires)
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as opened:
        for path, content in (files if files is not None else {f"{name}.py": f"VERSION = '{version}'\n".encode()}).items():
            opened.writestr(zipfile.ZipInfo(path), content, zipfile.ZIP_DEFLATED)
        opened.writestr(f"{info}/METADATA", said or SAID.format(name=name, version=version, more=more))
        opened.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
    return {f"{name}-{version}-{tag}.whl": data.getvalue()}


def early() -> dict[str, bytes]:
    """The directory is said to lie further back than it does."""
    ((name, content),) = wheel().items()
    at = int.from_bytes(content[-6:-2], "little")
    return {name: content[:-6] + (at + 9).to_bytes(4, "little") + content[-2:]}


def linked() -> dict[str, bytes]:
    ((name, content),) = wheel().items()
    data, entry = io.BytesIO(content), zipfile.ZipInfo("shouter/secret")
    entry.external_attr = 0o120777 << 16
    with zipfile.ZipFile(data, "a") as opened:
        opened.writestr(entry, "/etc/passwd")
    return {name: data.getvalue()}


def model(folder: Path, pinned: str, brought: Mapping[str, bytes], code: str = "return records") -> Path:
    (folder / wheels.FOLDER).mkdir(parents=True)
    for name, content in brought.items():
        (folder / wheels.FOLDER / name).write_bytes(content)
    (folder / "requirements.txt").write_text(pinned)
    (folder / "model.py").write_text(f"class Model:\n    def predict(self, records):\n        {code}\n")
    (folder / MODEL).write_text(json.dumps(custom.describe(folder)))
    return folder


PIN = "shouter==1.0\n"
NOT_MINE = "cp311-cp311-win_amd64"
HARM = {
    "leads out": (wheel(files={"../../outside.py": b""}), "leads out"),
    "absolute": (wheel(files={"/tmp/outside.py": b""}), "leads out"),
    "leads out of data": (wheel(files={"shouter-1.0.data/purelib/../../outside.py": b""}), "leads out"),
    "backslash": (wheel(files={"a\\b.py": b""}), "leads out"),
    "link": (linked(), "a link"),
    "other tag": (wheel(tag=NOT_MINE), f"CPython {image.PYTHON}"),
    "other python": (wheel(tag="cp27-cp27m-linux_x86_64"), "does not fit"),
    "no name": ({"shouter.whl": b""}, "no name of a wheel"),
    "not even a wheel": ({"notes.txt": b""}, "no name of a wheel"),
    "no zip": ({"shouter-1.0-py3-none-any.whl": b"x" * 99}, "no ZIP"),
    "cut off": ({name: content[:-30] for name, content in wheel().items()}, "no ZIP"),
    "another package": (wheel(said=SAID.format(name="whisperer", version="1.0", more="")), "holds whisperer 1.0"),
    "another version": (wheel(said=SAID.format(name="shouter", version="2.0", more="")), "holds shouter 2.0"),
    "says nothing": (wheel(said="\n"), "holds nothing"),
    "nonsense": (wheel(requires=("=!=",)), "cannot be understood"),
    "nested": (wheel(requires=(f"a; {'(' * 490}extra == 'x'{')' * 400}",)), "cannot be understood"),
    "endless": (wheel(requires=("numpy>=" + "9" * 5000,)), "more than 1000 characters"),
    "begins before itself": (early(), "begins before"),
    "for later pythons": (wheel(more="Requires-Python: >=4\n"), "is for Python >=4"),
    "wants too much": (wheel(requires=("a",) * 1001), "at most 1000"),
    "much to say": (wheel(said=SAID.format(name="shouter", version="1.0", more="\n") + "x" * (2 << 20)), "larger than 1 MiB"),
    "file and folder": (wheel(files={"a": b"", "a/b.py": b""}), "a folder as well"),
    "twice": (wheel() | wheel(version="2.0"), "twice"),
    "no wheel of it": ({}, "has no shouter"),
    "wrong version": (wheel(version="1.1"), "is another version"),
    "lacks what it needs": (wheel(requires=("no-such-package>=2",)), "shouter-1.0-py3-none-any.whl needs a package that is not there"),
    "needs another numpy": (wheel(requires=("numpy<1",)), f"which has numpy {np.__version__}"),
}


@pytest.mark.parametrize(("brought", "words"), HARM.values(), ids=HARM)
def test_harm_is_refused_in_words(tmp_path: Path, brought: dict[str, bytes], words: str) -> None:
    folder = model(tmp_path / "m", "# mine\n" + PIN, brought)
    with pytest.raises(Invalid) as raised:
        wheels.needed(folder, image.installed)
    (said,) = {each.message for each in raised.value.errors}
    assert words in said
    assert raised.value.errors[0].field in [*(f"wheels/{name}" for name in brought), "requirements.txt, line 2"]


def test_a_bomb_is_seen_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", 1 << 20)
    with pytest.raises(Invalid, match="unpacks to more than 1 MiB"):
        wheels.needed(model(tmp_path / "one", PIN, wheel(files={"a": bytes(4 << 20)})), image.installed)
    half = {"a": bytes(700 << 10)}
    folder = model(tmp_path / "two", "a==1\nb==1", wheel("a", "1", files=half) | wheel("b", "1", files=half))
    with pytest.raises(Invalid, match="together"):
        wheels.needed(folder, image.installed)
    ((name, content),) = wheel(files={"a": bytes(4 << 20)}).items()
    at = content.index(b"PK\x01\x02")
    lying = content[: at + 24] + (10).to_bytes(4, "little") + content[at + 28 :]
    found = wheels.needed(model(tmp_path / "three", PIN, {name: lying}), image.installed)
    with pytest.raises(Invalid, match="cannot be unpacked"):
        wheels.unpack(found, tmp_path / "packages")
    assert sum(path.stat().st_size for path in (tmp_path / "packages").rglob("*")) <= 2 << 20


def test_many_files_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "_MAX_FILES", 50)
    files = {f"f{number}": b"" for number in range(30)}
    folder = model(tmp_path / "m", "a==1\nb==1", wheel("a", "1", files=files) | wheel("b", "1", files=files))
    with pytest.raises(Invalid, match="all wheels together may have 50"):
        wheels.needed(folder, image.installed)


def test_files_come_out_where_an_installer_puts_them(tmp_path: Path) -> None:
    files = {
        "pack/__init__.py": b"", "pack/données.txt": b"", "shouter-1.0.data/purelib/pure.py": b"", "shouter-1.0.data/platlib/plat.py": b"",
        "shouter-1.0.data/scripts/shout": b"#!python", "shouter-1.0.data/data/etc/x": b"", "shouter.pth": b"import os; os._exit(9)",
    }  # fmt: skip
    brought = wheel(files=files, requires=("quiet[loud]==2; python_version > '3'", "absent; extra == 'more'"))
    brought |= wheel("quiet", "2", requires=("numpy; extra == 'loud'", "shouter")) | wheel("surplus", "3")
    found = wheels.needed(model(tmp_path / "m", PIN, brought), image.installed)
    assert [each.name for each in found] == ["shouter", "quiet"]
    wheels.unpack(found, tmp_path / "packages")
    paths = {path.relative_to(tmp_path / "packages").as_posix() for path in (tmp_path / "packages").rglob("*") if path.is_file()}
    infos = {f"{name}.dist-info/{file}" for name in ("shouter-1.0", "quiet-2") for file in ("METADATA", "WHEEL")}
    assert paths - infos == {"pack/__init__.py", "pack/données.txt", "pure.py", "plat.py", "quiet.py", "shouter.pth"}


def test_what_the_image_has_needs_no_wheel(tmp_path: Path) -> None:
    assert (
        wheels.needed(model(tmp_path / "m", f"numpy=={np.__version__}\nPillow[x]=={image.installed('pillow')}", {}), image.installed) == []
    )


def test_a_lock_says_what_an_image_has(tmp_path: Path) -> None:
    words = "# made by\nnumpy==2.0 ; python_full_version < '3' \\\n    --hash=sha256:0\nNumPy==2.1 ; python_full_version >= '3' \\\n"
    (tmp_path / "lock").write_text(words + "    # via x\na_b==1\n")
    assert image.packages(tmp_path / "lock") == {"numpy": "2.1", "a-b": "1"}
    assert image.packages()["numpy"] == np.__version__


ASKED = """import shouter, numpy, os
        return [[shouter.VERSION, shouter.__file__.startswith(os.environ["TMPDIR"]), numpy.__version__, eval(r, {"shouter": shouter})]
                for r in records]"""


def test_the_sandbox_imports_them_behind_the_model_s_own_files_and_before_the_image_s(tmp_path: Path) -> None:
    brought = wheel(requires=("numpy",)) | wheel("numpy", "0.1", files={"numpy/__init__.py": b"__version__ = '0.1'"})
    brought |= wheel("colorsys", "1", files={"colorsys.py": b"raise SystemExit"})
    folder = model(tmp_path / "m", PIN + "colorsys==1\nmine==1", brought | wheel("mine", "1"), ASKED)
    (folder / "mine.py").write_text("VERSION = 'own'")
    if guest.lacking():
        with pytest.raises(AppError, match="Landlock"):
            load_any(folder)
        return
    runtime = load_any(folder)
    harm = "open(shouter.__file__, 'w')"
    try:
        asked = [
            "__import__('colorsys').rgb_to_hsv(0, 0, 0)[2] or __import__('mine').VERSION",
            "__import__('importlib.metadata').metadata.version('shouter')",
        ]
        answers = runtime.word(runtime.answer(runtime.read(asked)))
        assert answers == [["1.0", False, "0.1", "own"], ["1.0", False, "0.1", "1.0"]]
        with pytest.raises(AppError, match="PermissionError"):
            runtime.answer(runtime.read([harm]))
        (place,) = runtime.word(runtime.answer(runtime.read(["shouter.__file__"])))
        assert Path(place[3]).is_file()
        assert Path(place[3]).parent.stat().st_mode & 0o777 == 0o700
        assert "shouter" not in sys.modules
    finally:
        runtime.close()
    assert not Path(place[3]).parent.exists()


def test_a_load_that_fails_leaves_no_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model(tmp_path / "m", PIN, wheel())
    (folder / "model.py").write_text("import shouter\nraise ValueError(shouter.VERSION)")
    (tmp_path / "t").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    with pytest.raises(AppError, match="Landlock" if guest.lacking() else r"ValueError: 1\.0"):
        load_any(folder)
    assert list((tmp_path / "t").iterdir()) == []


def test_native_modules_load_in_the_sandbox(tmp_path: Path) -> None:
    source = Path(markupsafe.__file__).parent
    files = {f"markupsafe/{path.name}": path.read_bytes() for path in source.iterdir() if path.suffix in (".py", ".so")}
    folder = model(tmp_path / "m", "markupsafe==99", wheel("markupsafe", "99", str(next(sys_tags())), files=files))
    (folder / "model.py").write_text(
        "from markupsafe import _speedups\nclass Model:\n    def predict(self, records):\n"
        "        return [[_speedups._escape_inner(r), _speedups.__file__] for r in records]\n"
    )
    if guest.lacking():
        with pytest.raises(AppError, match="Landlock"):
            load_any(folder)
        return
    runtime = load_any(folder)
    try:
        ((escaped, place),) = runtime.word(runtime.answer(runtime.read(["<b>"])))
    finally:
        runtime.close()
    assert escaped == "&lt;b&gt;"
    assert "lepton-packages-" in place
