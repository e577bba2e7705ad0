"""A model that a member brings: from a ZIP in the store to a version, or words and nothing left."""

import asyncio
import io
import json
import platform as machine
import time
import zipfile
from typing import Any

import pytest
from onnx import TensorProto, helper
from sqlalchemy import select, update

from lepton.common.v1 import resource_pb2
from lepton.training.v1 import job_pb2, model_pb2
from lepton.training.v1 import training_service_pb2 as pb
from lepton.training.v1.events_pb2 import ModelVersionRegistered
from libs.db.infrastructure import outbox
from libs.errors import Invalid, NotFound, QuotaExceeded, Replay, Transient
from libs.testing import as_member
from services.training.conftest import Platform, bytes_of
from services.training.tables import PendingReservation

CODE = b"class Model:\n    def predict(self, records):\n        return records\n"
SIGNATURE = {"inputs": [{"name": "x", "type": "double"}], "outputs": [{"name": "y", "type": "double", "shape": [3]}]}


async def push(platform: Platform, files: dict[str, bytes], *, workspace: str = "acme", key: str = "") -> model_pb2.ModelVersion:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as opened:
        for name, content in files.items():
            opened.writestr(zipfile.ZipInfo(name), content)
    stored = await platform.stores.models.put(bytes_of(data.getvalue()))
    request = pb.RegisterModelVersionRequest(name="m", content=resource_pb2.Artifact(digest=stored.digest, size_bytes=stored.size))
    with as_member(workspace, key=key, method="RegisterModelVersion"):
        return await platform.servicer.RegisterModelVersion(request, None)


async def test_an_archive_becomes_a_version(platform: Platform) -> None:
    version = await push(platform, {"model.py": CODE, "signature.json": json.dumps(SIGNATURE).encode(), "part/__init__.py": b""})
    assert (version.model, version.number, version.source) == ("m", 1, model_pb2.MODEL_SOURCE_UPLOADED)
    assert [field.name for field in version.signature.inputs] == ["x"]
    assert [file.path for file in version.files] == ["model.json", "model.py", "signature.json", "part/__init__.py"]
    content = b"".join([chunk async for chunk in platform.stores.models.open(version.files[0].digest)])
    assert json.loads(content)["format"] == 2
    assert (await push(platform, {"model.py": CODE})).number == 2
    with as_member():
        found = await platform.servicer.GetModelVersion(pb.GetModelVersionRequest(name="m", number=1), None)
    assert found == version
    with as_member("rival"), pytest.raises(NotFound):
        await platform.servicer.GetModelVersion(pb.GetModelVersionRequest(name="m"), None)


async def test_an_archive_may_bring_wheels(platform: Platform) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as opened:
        said = "Metadata-Version: 2.1\nName: shouter\nVersion: 1.0\nRequires-Dist: numpy>=2\n"
        opened.writestr("shouter-1.0.dist-info/METADATA", said)
        opened.writestr("shouter-1.0.dist-info/WHEEL", "Wheel-Version: 1.0")
    wheel = "wheels/shouter-1.0-py3-none-any.whl"
    files = {"model.py": CODE, "requirements.txt": b"shouter==1.0", wheel: data.getvalue()}
    version = await push(platform, files)
    assert [file.path for file in version.files] == ["model.json", *files]


async def test_what_a_model_finds_where_it_runs(platform: Platform) -> None:
    with as_member():
        runtime = await platform.servicer.GetModelRuntime(pb.GetModelRuntimeRequest(), None)
    assert (runtime.python, [(each.name, each.version) for each in runtime.packages]) == (machine.python_version(), [("numpy", "2.1")])
    assert runtime.platforms[0].startswith(("manylinux", "musllinux", "macosx", "linux"))


async def test_the_same_twice_in_two_workspaces(platform: Platform) -> None:
    assert (await push(platform, {"model.py": CODE})).number == 1
    assert (await push(platform, {"model.py": CODE}, workspace="rival")).number == 1


async def test_an_answer_that_got_lost_makes_no_second_version(platform: Platform) -> None:
    version = await push(platform, {"model.py": CODE}, key="k")
    with pytest.raises(Replay) as replayed:
        await push(platform, {"model.py": CODE}, key="k")
    assert model_pb2.ModelVersion.FromString(replayed.value.response) == version


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"other.py": CODE}, "neither model.py"),
        ({"model.py": CODE, "model.json": b"{}"}, "leave it out"),
        ({"model.py": CODE, "signature.json": b"{"}, "no JSON"),
        ({"model.py": CODE, "requirements.txt": b"torch>2"}, "pins no version"),
        ({"model.py": CODE, "../x": b""}, "begin with"),
        ({"model.py": CODE, "requirements.txt": b"torch==2.9"}, "which has no torch"),
        ({"model.py": CODE, "requirements.txt": b"\nnumpy==1.26"}, "requirements.txt, line 2: numpy==1.26"),
        ({"model.py": CODE, "wheels/notes.txt": b"x"}, "no name of a wheel"),
    ],
)
async def test_what_cannot_be_served_leaves_nothing(platform: Platform, files: dict[str, bytes], words: str) -> None:
    with pytest.raises(Invalid) as raised:
        await push(platform, files)
    assert words in raised.value.detail
    with as_member():
        listed: Any = await platform.servicer.ListModels(pb.ListModelsRequest(), None)
    assert not listed.models


async def test_bytes_that_are_not_there(platform: Platform) -> None:
    request = pb.RegisterModelVersionRequest(name="m", content=resource_pb2.Artifact(digest="sha256:" + "0" * 64))
    with as_member(method="RegisterModelVersion"), pytest.raises(NotFound):
        await platform.servicer.RegisterModelVersion(request, None)


async def test_an_onnx_file_says_itself_what_it_takes(platform: Platform) -> None:
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", sides[:1], sides[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    version = await push(platform, {"model.onnx": model.SerializeToString()})
    assert [(each.name, list(each.shape)) for each in (*version.signature.inputs, *version.signature.outputs)] == [("x", [3]), ("y", [3])]
    names = {"features": ["a", "b", "c"], "classes": ["d", "e", "f"]}
    version = await push(platform, {"model.onnx": model.SerializeToString(), "names.json": json.dumps(names).encode()})
    assert [each.name for each in (*version.signature.inputs, *version.signature.outputs)] == ["a", "b", "c", "prediction", "probabilities"]
    assert [list(each.categories) for each in version.signature.outputs] == [names["classes"]] * 2
    with pytest.raises(Invalid, match="2 classes are named, and the graph gives 'y'"):
        await push(platform, {"model.onnx": model.SerializeToString(), "names.json": b'{"classes": ["d", "e"]}'})
    graph.node[0].domain = "com.stranger"
    with pytest.raises(Invalid, match="not one of ONNX"):
        await push(platform, {"model.onnx": helper.make_model(graph).SerializeToString()})


async def test_no_training_goes_on_from_what_was_uploaded(platform: Platform) -> None:
    await push(platform, {"model.py": CODE})
    model = job_pb2.ModelSpec(architecture=job_pb2.ARCHITECTURE_LINEAR, init="m@1")
    with pytest.raises(Invalid, match="m@1 was uploaded"):
        await platform.submit(output_model="n", model=model)


def unpacked_size(version: model_pb2.ModelVersion) -> int:
    return sum(file.size_bytes for file in version.files)


async def reserved_since(platform: Platform, seconds: float) -> None:
    """Whatever is being reserved, is so for `seconds`."""
    async with platform.database.unit() as unit:
        await unit.session.execute(update(PendingReservation).values(create_time=time.time() - seconds))


async def test_what_it_unpacks_to_is_reserved_under_the_name_that_its_event_says(platform: Platform) -> None:
    version = await push(platform, {"model.py": CODE, "zeros": b"\0" * 100_000})
    [(name, metric), amount] = next(iter(platform.accounts.reserved.items()))
    assert (metric, amount) == ("storage_bytes", unpacked_size(version)) and amount > 100_000
    assert name.startswith("uploads/acme/")
    async with platform.database.read() as session:
        [data] = (await session.execute(select(outbox.c.data))).scalars()
    assert ModelVersionRegistered.FromString(data).reservation == name
    await reserved_since(platform, 3600)
    await platform.reconciler.step()
    assert platform.accounts.reserved, "it stands until accounts has heard of the version"


async def test_a_bomb_is_not_stored(platform: Platform) -> None:
    platform.accounts.limits["storage_bytes"] = 50_000
    before = {digest async for digest, _ in platform.stores.models.list()}
    with pytest.raises(QuotaExceeded):
        await push(platform, {"model.py": CODE, "zeros": b"\0" * 100_000})
    after = {digest async for digest, _ in platform.stores.models.list()}
    assert len(after - before) == 1, "only the archive, which is swept"
    assert platform.accounts.reserved == {}
    with as_member():
        assert not (await platform.servicer.ListModels(pb.ListModelsRequest(), None)).models


async def test_two_at_once_do_not_pass_the_limit_together(platform: Platform) -> None:
    size = unpacked_size(await push(platform, {"model.py": CODE}, workspace="rival"))
    platform.accounts.reserved.clear()
    platform.accounts.limits["storage_bytes"] = 2 * size - 1
    answers = await asyncio.gather(*(push(platform, {"model.py": CODE}) for _ in range(4)), return_exceptions=True)
    made = [answer for answer in answers if isinstance(answer, model_pb2.ModelVersion)]
    assert len(made) == 1 and all(isinstance(answer, QuotaExceeded) for answer in answers if answer not in made), answers
    assert sum(platform.accounts.reserved.values()) == size


@pytest.mark.parametrize("killed", [False, True])
async def test_one_that_breaks_off_gives_back(platform: Platform, killed: bool) -> None:
    async def break_off() -> None:
        assert platform.accounts.reserved
        # Whoever is killed gives nothing back, nor does who does not reach accounts.
        platform.accounts.away = killed
        raise asyncio.CancelledError

    platform.accounts.on_reserved = break_off
    with pytest.raises(asyncio.CancelledError):
        await push(platform, {"model.py": CODE})
    assert bool(platform.accounts.reserved) is killed
    platform.accounts.away = False
    await reserved_since(platform, 300)
    await platform.reconciler.step()
    assert bool(platform.accounts.reserved) is killed, "it may still be on its way"
    await reserved_since(platform, 700)
    await platform.reconciler.step()
    assert platform.accounts.reserved == {}


async def test_what_was_given_back_is_not_made_any_more(platform: Platform) -> None:
    async def dawdle() -> None:
        await reserved_since(platform, 700)
        await platform.reconciler.step()

    platform.accounts.on_reserved = dawdle
    with pytest.raises(Transient, match="too long"):
        await push(platform, {"model.py": CODE})
    with as_member():
        assert not (await platform.servicer.ListModels(pb.ListModelsRequest(), None)).models


async def test_no_training_begins_without_room_for_its_model(platform: Platform) -> None:
    platform.accounts.limits["storage_bytes"] = 0
    with pytest.raises(QuotaExceeded):
        await platform.submit()
    assert platform.accounts.reserved == {}
    platform.accounts.limits["storage_bytes"] = 1
    await platform.submit()
