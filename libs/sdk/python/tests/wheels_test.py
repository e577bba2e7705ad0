"""A model's requirements become wheels beside it: by pip, without an index, for the platform's Python and never for this one's."""

import io
import zipfile
from pathlib import Path

import pytest
from fake_platform import FakePlatform

import leptonai as la


def wheel(folder: Path, name: str, version: str, tag: str = "py3-none-any", *needs: str) -> Path:
    said = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nProvides-Extra: soft\n" + "".join(
        f"Requires-Dist: {each}\n" for each in needs
    )
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr(f"{name}-{version}.dist-info/METADATA", said)
        opened.writestr(f"{name}-{version}.dist-info/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        opened.writestr(f"{name}-{version}.dist-info/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes wheels from, and from nowhere else."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def model(tmp_path: Path, pinned: str) -> Path:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/model.py").write_text("class Model: ...")
    (tmp_path / "mine/requirements.txt").write_text(pinned)
    return tmp_path / "mine"


def sent(platform: FakePlatform) -> list[str]:
    (request,) = platform.asked("PUT", "/v1/models/mine/content")
    with zipfile.ZipFile(io.BytesIO(request["body"])) as archive:
        return archive.namelist()


OWN = ["model.py", "requirements.txt"]


def test_what_the_platform_lacks_comes_with_what_it_needs(client: la.Client, platform: FakePlatform, index: Path, tmp_path: Path) -> None:
    wheel(index, "shouter", "1.0", "cp312-cp312-manylinux_2_17_x86_64", "numpy>=2", "heavy-torch", "quiet; extra == 'soft'")
    wheel(index, "shouter", "1.0", "cp311-cp311-manylinux_2_17_x86_64")
    wheel(index, "numpy", "2.1", "cp312-cp312-manylinux_2_36_x86_64")
    wheel(index, "numpy", "2.3", "cp312-cp312-manylinux_2_36_x86_64")
    wheel(index, "heavy_torch", "2.9", "py3-none-any", "nowhere-to-be-found")
    wheel(index, "quiet", "3")
    client.models.push("mine", model(tmp_path, "Shouter[soft] == 1.0  # mine\nheavy_torch==2.9\n"))
    assert sent(platform) == [*OWN, "wheels/quiet-3-py3-none-any.whl", "wheels/shouter-1.0-cp312-cp312-manylinux_2_17_x86_64.whl"]


def test_a_pinned_version_is_brought_beside_the_platform_s(client: la.Client, platform: FakePlatform, index: Path, tmp_path: Path) -> None:
    wheel(index, "numpy", "1.26")
    client.models.push("mine", model(tmp_path, "numpy==1.26"))
    assert sent(platform) == [*OWN, "wheels/numpy-1.26-py3-none-any.whl"]


@pytest.mark.parametrize("pinned", ["numpy==2.1\nheavy.torch==2.9", "torch\nshouter==1.0", ""])
def test_nothing_is_downloaded_for_what_is_there_or_will_be_refused(
    client: la.Client, platform: FakePlatform, index: Path, tmp_path: Path, pinned: str
) -> None:
    client.models.push("mine", model(tmp_path, pinned))
    assert sent(platform) == OWN


def test_wheels_may_be_given(client: la.Client, platform: FakePlatform, tmp_path: Path) -> None:
    folder = model(tmp_path, "shouter==1.0")
    wheel(tmp_path / "given", "shouter", "1.0")
    client.models.push("mine", folder, wheels=tmp_path / "given")
    assert sent(platform) == [*OWN, "wheels/shouter-1.0-py3-none-any.whl"]
    with pytest.raises(la.InvalidInput, match="no folder with wheels"):
        client.models.push("mine", folder, wheels=tmp_path)
    assert not platform.asked("GET", "/v1/model-runtime")


def test_wheels_in_the_model_s_folder_are_all_that_is_sent(client: la.Client, platform: FakePlatform, tmp_path: Path) -> None:
    folder = model(tmp_path, "shouter==1.0")
    wheel(folder / "wheels", "shouter", "1.0")
    client.models.push("mine", folder)
    assert sent(platform) == [*OWN, "wheels/shouter-1.0-py3-none-any.whl"]
    assert not platform.asked("GET", "/v1/model-runtime")


def test_a_package_without_a_wheel_is_named_by_its_line(client: la.Client, platform: FakePlatform, index: Path, tmp_path: Path) -> None:
    wheel(index, "shouter", "1.0", "cp311-cp311-win_amd64")
    (index / "shouter-1.0.tar.gz").write_bytes(b"")
    folder = model(tmp_path, "# mine\nshouter==1.0")
    with pytest.raises(
        la.InvalidInput, match=r"requirements\.txt, line 2: there is no wheel of shouter==1\.0 for CPython 3\.12\.1 on manylinux"
    ):
        client.models.push("mine", folder)
    wheel(index, "shouter", "1.0", "py3-none-any", "numpy<2")
    with pytest.raises(la.InvalidInput, match=r"shouter 1\.0 depends on numpy<2"):
        client.models.push("mine", folder)
    assert not platform.asked("PUT", "/v1/models/mine/content")


@pytest.mark.parametrize(
    "runtime",
    [
        {},
        {"python": "3.12.1", "platforms": [], "packages": []},
        {"python": "3.12.1", "platforms": ["any"], "packages": [{"name": "../outside", "version": "1"}]},
        {"python": "3.12.1", "platforms": ["any"], "packages": [{"name": "a", "version": "1\n-r /etc/passwd"}]},
        {"python": "3.12.1 --index-url=x", "platforms": ["any"], "packages": []},
    ],
)
def test_what_the_platform_says_is_looked_at(
    client: la.Client, platform: FakePlatform, index: Path, tmp_path: Path, runtime: object
) -> None:
    platform.script["GET /v1/model-runtime"] = [(200, runtime, {})]
    with pytest.raises(la.LeptonError, match="did not say which packages"):
        client.models.push("mine", model(tmp_path, "shouter==1.0"))
