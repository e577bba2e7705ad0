"""A model of one's own code: pushed, deployed, asked; and code that means harm ends in words while its endpoint lives."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from onnx import TensorProto, helper

import leptonai as la
from libs.modelkit import guest
from tests.platform import Platform, eventually, lepton

CODE = """
import json, os, socket

class Model:
    def load(self, folder):
        self.weights = json.load(open(folder + "/weights.json"))

    def predict(self, records):
        return [{"y": self.harm(record["ask"]) + self.weights["slope"] * record["x"]} for record in records]

    def harm(self, ask):
        if ask == "environment":
            return len(open(f"/proc/{os.getppid()}/environ").read())
        if ask == "network":
            return len(socket.create_connection(("127.0.0.1", 1)).recv(1))
        if ask == "kill":
            return os.kill(os.getppid(), 9)
        if ask == "fork":
            return os.fork()
        if ask == "memory":
            return len(bytearray(1 << 40))
        if ask == "end":
            os._exit(1)
        if ask == "nothing":
            return float("nan")
        return len(open(ask).read()) if ask else 0
"""
SIGNATURE = {
    "inputs": [{"name": "x", "type": "double"}, {"name": "ask", "type": "string"}],
    "outputs": [{"name": "y", "type": "double"}],
}
HARM = ("environment", "network", "kill", "fork", "memory", "end", "nothing")


def written(folder: Path, weights: str) -> Path:
    folder.mkdir()
    (folder / "model.py").write_text(CODE)
    (folder / "weights.json").write_text(weights)
    (folder / "signature.json").write_text(json.dumps(SIGNATURE))
    return folder


@pytest.fixture(scope="module")
def client(embedded_platform: Platform) -> Iterator[la.Client]:
    with embedded_platform.client() as client:
        yield client


def serves(client: la.Client, endpoint: str) -> bool:
    """Whether it does here; where this kernel has no sandbox it says so."""
    if guest.lacking():
        with pytest.raises(la.LeptonError, match="Landlock"):
            client.endpoints.wait_ready(endpoint, 120)
        return False
    client.endpoints.wait_ready(endpoint, 120)
    return True


def test_code_of_one_s_own_answers(embedded_platform: Platform, client: la.Client, tmp_path: Path) -> None:
    done = lepton("model", "push", "sloped", str(written(tmp_path / "m", '{"slope": 3}')), "--json", env=embedded_platform.env)
    assert done.returncode == 0, done.stderr
    version = json.loads(done.stdout)
    assert (version["number"], version["source"], version["signature"]["inputs"][0]["name"]) == (1, "uploaded", "x")
    client.endpoints.create("sloped", "sloped@1")
    if not serves(client, "sloped"):
        return
    assert client.endpoints.predict("sloped", [{"x": 2, "ask": ""}, {"x": 4, "ask": ""}]) == [{"y": 6}, {"y": 12}]
    secret = next(path for path in embedded_platform.home.rglob("*") if path.is_file() and path.stat().st_size)
    for ask in (*HARM, str(secret)):
        with pytest.raises(la.APIError) as raised:
            client.endpoints.predict("sloped", [{"x": 1, "ask": ask}])
        assert raised.value.status == 502, ask
        assert client.endpoints.predict("sloped", [{"x": 1, "ask": ""}]) == [{"y": 3}]
    with pytest.raises(la.APIError) as raised:
        client.endpoints.predict("sloped", [{"x": "much", "ask": ""}])
    assert raised.value.status in (400, 422)
    client.endpoints.delete("sloped")


def test_code_that_cannot_be_loaded_says_why_in_its_endpoint(client: la.Client, tmp_path: Path) -> None:
    client.models.push("broken", written(tmp_path / "m", '{"slope": '))
    client.endpoints.create("broken", "broken@1")
    with pytest.raises(la.LeptonError, match="Landlock" if guest.lacking() else "JSONDecodeError"):
        client.endpoints.wait_ready("broken", 120)
    client.endpoints.delete("broken")


def test_what_cannot_be_served_is_refused_when_it_is_pushed(client: la.Client, tmp_path: Path) -> None:
    folder = written(tmp_path / "m", "{}")
    (folder / "requirements.txt").write_text("torch\n")
    with pytest.raises(la.APIError, match="pins no version"):
        client.models.push("unpinned", folder)
    assert "unpinned" not in [model.name for model in client.models.list()]


def small_wheel(folder: Path) -> None:
    folder.mkdir()
    with zipfile.ZipFile(folder / "shouter-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("shouter/__init__.py", "def shout(text):\n    return text.upper() + '!'\n")
        wheel.writestr("shouter-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: shouter\nVersion: 1.0\nRequires-Dist: numpy\n")
        wheel.writestr("shouter-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("shouter-1.0.dist-info/RECORD", "")


def test_a_model_brings_what_the_platform_lacks(embedded_platform: Platform, client: la.Client, tmp_path: Path) -> None:
    small_wheel(tmp_path / "index")
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "model.py").write_text(
        "import numpy, shouter\nclass Model:\n    def predict(self, records):\n        return [shouter.shout(r) for r in records]\n"
    )
    (folder / "requirements.txt").write_text("shouter==1.0\n")
    there = {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "index")}
    done = lepton("model", "push", "shouting", str(folder), "--json", env=embedded_platform.env | there)
    assert done.returncode == 0, done.stderr
    assert "wheels/shouter-1.0-py3-none-any.whl" in [file["path"] for file in json.loads(done.stdout)["files"]]
    (folder / "requirements.txt").write_text("shouter==2.0\n")
    with pytest.raises(la.APIError, match=r"requirements\.txt, line 1: shouter==2\.0 is due"):
        client.models.push("shouting", folder, wheels=tmp_path / "index")
    client.endpoints.create("shouting", "shouting@1")
    if not serves(client, "shouting"):
        return
    assert client.endpoints.predict("shouting", ["hello"]) == ["HELLO!"]
    unpacked = next(embedded_platform.home.rglob("shouter/__init__.py"))
    client.endpoints.delete("shouting")
    assert eventually(lambda: not unpacked.exists())


def test_an_onnx_file_answers_records_and_tensors(embedded_platform: Platform, client: la.Client, tmp_path: Path) -> None:
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", sides[:1], sides[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "relu.onnx").write_bytes(model.SerializeToString())
    client.models.push("relu", tmp_path / "relu.onnx")
    client.endpoints.create("relu", "relu@1")
    if not serves(client, "relu"):
        return
    assert client.endpoints.predict("relu", [{"x": [1, -2, 3]}]) == [{"y": [1, 0, 3]}]
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": [1, -1, 2, -2, 3, -3]}
    with embedded_platform.http() as http:
        answer = http.post("/v2/models/relu/infer", json={"inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == [1, 0, 2, 0, 3, 0]
    client.endpoints.delete("relu")


def iris(path: Path) -> Path:
    """A classifier of two features, as scikit-learn's become ONNX files."""
    node = helper.make_node(
        "LinearClassifier",
        ["X"],
        ["label", "probabilities"],
        domain="ai.onnx.ml",
        coefficients=[1.0, 0.0, 0.0, 1.0, -1.0, -1.0],
        intercepts=[0.0, 0.0, 2.0],
        classlabels_ints=[0, 1, 2],
        post_transform="SOFTMAX",
    )
    x = helper.make_tensor_value_info("X", TensorProto.FLOAT, [None, 2])
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 3]),
    ]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    path.write_bytes(
        helper.make_model(helper.make_graph([node], "g", [x], outputs), opset_imports=opsets, ir_version=8).SerializeToString()
    )
    return path


def test_an_onnx_classifier_with_names_answers_one_record_and_every_row(
    embedded_platform: Platform, client: la.Client, tmp_path: Path
) -> None:
    file = str(iris(tmp_path / "iris.onnx"))
    names = ("--features", "length,width", "--classes")
    done = lepton("model", "push", "iris", file, *names, "setosa,virginica", env=embedded_platform.env)
    assert (
        done.returncode != 0 and "2 classes are named, and the graph gives 'label' (one integer), 'probabilities' (3 double)" in done.stderr
    )
    done = lepton("model", "push", "iris", file, *names, "setosa,versicolor,virginica", env=embedded_platform.env)
    assert done.returncode == 0, done.stderr
    rows = b"".join(b"%d,%d,%d\n" % (at, at % 7, at % 5) for at in range(3000))
    client.datasets.upload("flowers", b"id,length,width\n" + rows, filename="flowers.csv")
    if guest.lacking():
        with pytest.raises(la.JobFailed, match="Landlock"):
            client.batch_predict("iris@1", "flowers@1", "flowers-named", timeout=120, progress=False)
        return
    client.endpoints.create("iris", "iris@1")
    client.endpoints.wait_ready("iris", 120)
    records = [{"length": at % 7, "width": at % 5} for at in range(3000)]
    answers = client.endpoints.predict("iris", records)
    assert (answers[6]["prediction"], answers[8]["prediction"], answers[0]["prediction"]) == ("setosa", "versicolor", "virginica")
    assert list(answers[0]["probabilities"]) == ["setosa", "versicolor", "virginica"]
    version = client.batch_predict("iris@1", "flowers@1", "flowers-named", columns=["id"], timeout=120, progress=False)
    found = client.datasets.to_pandas(version)
    assert list(found) == ["id", "prediction", "probability_setosa", "probability_versicolor", "probability_virginica"]
    assert found["id"].tolist() == list(range(3000))
    assert found["prediction"].tolist() == [answer["prediction"] for answer in answers]
    client.endpoints.delete("iris")


HALVES = """
class Model:
    def predict(self, records):
        return [{"half": self.half(record["x"]), "named": [str(record["x"]), record["word"]]} for record in records]

    def half(self, x):
        if x > 4000:
            raise ValueError("too large")
        return x / 2
"""


def test_code_of_one_s_own_answers_every_row_of_a_dataset(client: la.Client, tmp_path: Path) -> None:
    inputs = [{"name": "x", "type": "integer"}, {"name": "word", "type": "string"}]
    outputs = [{"name": "half", "type": "double"}, {"name": "named", "type": "string", "shape": [2]}]
    (tmp_path / "model.py").write_text(HALVES)
    client.models.push("halves", tmp_path)
    client.datasets.upload("many", b"x,word\n" + b"".join(b"%d,w%d\n" % (at, at) for at in range(3000)), filename="many.csv")
    with pytest.raises(la.InvalidData, match="does not say which columns it takes and gives"):
        client.batch_predictions.create("halves", "many", "halved")
    client.models.push("halves", tmp_path, signature={"inputs": inputs, "outputs": outputs})
    if guest.lacking():
        with pytest.raises(la.JobFailed, match="Landlock"):
            client.batch_predict("halves", "many@1", "halved", timeout=120, progress=False)
        return
    found = client.datasets.to_pandas(client.batch_predict("halves", "many@1", "halved", timeout=120, progress=False))
    assert list(found) == ["x", "word", "half", "named_0", "named_1"]
    assert found.to_dict("records") == [
        {"x": at, "word": f"w{at}", "half": at / 2, "named_0": str(at), "named_1": f"w{at}"} for at in range(3000)
    ]
    client.datasets.upload("more", b"x,word\n1,a\n2,b\n5000,c\n", filename="more.csv")
    with pytest.raises(la.JobFailed, match=r"row 3 has no answer: The model's code failed: ValueError: too large"):
        client.batch_predict("halves", "more@1", "refused", timeout=120, progress=False)
    assert "refused" not in [dataset.name for dataset in client.datasets.list()]


WRITER = """
class Model:
    batch = False

    def predict(self, records):
        return [records[0][::-1]]

    def generate(self, prompt, *, max_tokens, temperature, stop):
        for word in ("Once ", "upon ", "a ", "time")[:max_tokens]:
            yield word

    def embed(self, texts):
        return [[float(len(text)), 1.0] for text in texts]
"""


def test_code_that_writes_is_asked_as_openai_s_models_are(embedded_platform: Platform, client: la.Client, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(WRITER)
    client.models.push("writer", tmp_path)
    client.endpoints.create("writer", "writer@1")
    if not serves(client, "writer"):
        return
    assert client.endpoints.predict("writer", ["abc", "de"]) == ["cba", "ed"]
    asked = {"model": "writer", "messages": [{"role": "user", "content": "a story"}], "max_tokens": 3}
    with embedded_platform.http() as http:
        whole = http.post("/v1/chat/completions", json=asked)
        assert whole.status_code == 200, whole.text
        assert whole.json()["choices"][0]["message"]["content"] == "Once upon a "
        assert whole.json()["usage"]["completion_tokens"] == 3
        streamed = http.post("/v1/chat/completions", json={**asked, "stream": True})
        assert streamed.text.count('"finish_reason":null') == 3
        found = http.post("/v1/embeddings", json={"model": "writer", "input": ["four", "no"]}).json()
    assert [each["embedding"] for each in found["data"]] == [[4.0, 1.0], [2.0, 1.0]]
    client.endpoints.delete("writer")
