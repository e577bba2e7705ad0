"""A model that a member brings: from a ZIP in the store to a version, or words and nothing left."""

import io
import json
import zipfile
from typing import Any

import pytest
from onnx import TensorProto, helper

from lepton.common.v1 import resource_pb2
from lepton.training.v1 import job_pb2, model_pb2
from lepton.training.v1 import training_service_pb2 as pb
from libs.errors import Invalid, NotFound, Replay
from libs.testing import as_member
from services.training.conftest import Platform, bytes_of

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
