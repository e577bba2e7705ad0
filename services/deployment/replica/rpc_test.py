"""The inference protocol spoken by tritonclient, unmodified, over both transports: the same process, the same answers."""

import asyncio
import socket
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from services.deployment.replica.app import Replica
from services.deployment.replica.rpc import InferenceServer
from services.deployment.replica.server import Server

METADATA = (("x-lepton-replica-token", "secret"),)
VALUES = {
    "BOOL": np.array([True, False, True]),
    **{name: np.array([0, 7, 100], name.lower()) for name in ("UINT8", "UINT16", "UINT32", "UINT64")},
    **{name: np.array([-100, 7, 100], name.lower()) for name in ("INT8", "INT16", "INT32", "INT64")},
    **{f"FP{bits}": np.array([-0.5, 0.25, 1024], f"float{bits}") for bits in (16, 32, 64)},
    "BYTES": np.array(["x", "ÿ", ""], object),
}


def token():
    return dict(METADATA)  # a new one for each call: the HTTP client writes into it


class Place:
    def __init__(self, replica, http, calls, ports):
        self.replica, self.http, self.calls = replica, http, calls
        self.http_address, self.grpc_address = (f"127.0.0.1:{port}" for port in ports)


@asynccontextmanager
async def serving(runtime, version="", **options):
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    replica = Replica(runtime, "secret", "m", version, **options)
    http, calls = Server(replica), InferenceServer(replica)
    await http.start(listening)
    try:
        yield Place(replica, http, calls, (listening.getsockname()[1], await calls.start("127.0.0.1", 0)))
    finally:
        await asyncio.gather(http.drain(1), calls.drain(1))


def by_http(place, use):
    """In a thread, since that client blocks; its answer."""

    def work():
        with tritonclient.http.InferenceServerClient(place.http_address) as client:
            return use(client)

    return asyncio.to_thread(work)


def by_grpc(place, use):
    """Likewise."""

    def work():
        with tritonclient.grpc.InferenceServerClient(place.grpc_address) as client:
            return use(client)

    return asyncio.to_thread(work)


def tensors(module, **columns):
    made = []
    for name, (array, datatype) in columns.items():
        tensor = module.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        made.append(tensor)
    return made


def table(module, rows=3, **changed):
    columns = {
        "double": (np.linspace(1, 4, rows), "FP64"),
        "integer": (np.arange(rows), "INT64"),
        "boolean": (np.arange(rows) % 2 == 0, "BOOL"),
        "string": (np.array(["x", "y", "z"] * rows, object)[:rows], "BYTES"),
    }
    return tensors(module, **{**columns, **changed})


def column_of(datatype):
    return {"BOOL": "boolean", "BYTES": "string"}.get(datatype, "double")


@pytest.mark.parametrize("datatype", VALUES)
async def test_every_datatype_means_the_same_over_both_transports_and_as_records(mixed, datatype):
    values, name = VALUES[datatype], column_of(datatype)
    async with serving(mixed) as place:
        changed = {name: (values, datatype)}
        binary = await by_http(place, lambda client: client.infer("m", table(tritonclient.http, **changed), headers=token()))
        raw = await by_grpc(place, lambda client: client.infer("m", table(tritonclient.grpc, **changed), headers=token()))
    records = [
        {"double": double, "integer": index, "boolean": index % 2 == 0, "string": "xyz"[index], name: value}
        for index, (double, value) in enumerate(zip([1.0, 2.5, 4.0], values.tolist(), strict=True))
    ]
    expected = [answer["prediction"] for answer in mixed.predict_records(records)]
    assert binary.as_numpy("prediction").tolist() == raw.as_numpy("prediction").tolist() == pytest.approx(expected)


async def test_json_and_binary_outputs_ids_versions_and_the_filter_over_http(runtime):
    def use(client):
        inputs = tensors(tritonclient.http, a=(np.array([1.0, 2.0]), "FP64"), b=(np.array(["x", "y"], object), "BYTES"))
        wanted = [tritonclient.http.InferRequestedOutput("probabilities", binary_data=binary) for binary in (True, False)]
        answers = [client.infer("m", inputs, request_id="7", outputs=[output], headers=token(), model_version="3") for output in wanted]
        return answers, client.infer("m", inputs, headers=token())

    async with serving(runtime, "3") as place:
        answers, whole = await by_http(place, use)
    for answer in answers:
        said = answer.get_response()
        assert (said["id"], said["model_version"], [output["name"] for output in said["outputs"]]) == ("7", "3", ["probabilities"])
        assert answer.as_numpy("probabilities").tolist() == whole.as_numpy("probabilities").tolist()
    assert whole.as_numpy("prediction").tolist()[0] in (b"no", b"yes")


async def test_what_the_client_asks_of_server_and_model_over_http(runtime):
    def use(client):
        return (
            client.is_server_live(token()),
            client.is_server_ready(token()),
            client.is_model_ready("m", headers=token()),
            client.get_server_metadata(token())["name"],
            client.get_model_metadata("m", headers=token())["inputs"],
            client.get_model_repository_index(token()),
            client.infer("m", tensors(tritonclient.http, a=(np.ones(3), "FP64"), b=(np.array(["x"] * 3, object), "BYTES")), headers=token())
            and client.get_inference_statistics("m", headers=token())["model_stats"][0],
        )

    async with serving(runtime) as place:
        live, ready, model_ready, name, inputs, index, counted = await by_http(place, use)
        with pytest.raises(InferenceServerException, match="the one model"):
            await by_http(place, lambda client: client.load_model("m", headers=token()))
    assert (live, ready, model_ready, name) == (True, True, True, "lepton")
    assert [field["datatype"] for field in inputs] == ["FP64", "BYTES"]
    assert index == [{"name": "m", "version": "", "state": "READY", "reason": ""}]
    assert (counted["inference_count"], counted["execution_count"], counted["inference_stats"]["success"]["count"]) == (3, 1, 1)
    assert counted["inference_stats"]["compute_infer"]["ns"] > 0
    assert counted["batch_stats"][0]["batch_size"] == 4


async def test_what_the_client_asks_of_server_and_model_over_grpc(runtime):
    def use(client):
        assert client.is_server_live(token())
        assert client.is_server_ready(token())
        assert client.is_model_ready("m", "3", token())
        for name, version in (("other", ""), ("m", "4")):
            with pytest.raises(InferenceServerException, match="there is no model") as refused:
                client.is_model_ready(name, version, token())
            assert refused.value.status() == "StatusCode.NOT_FOUND"
        return client.get_server_metadata(token()), client.get_model_metadata("m", headers=token())

    async with serving(runtime, "3") as place:
        server, model = await by_grpc(place, use)
    assert (server.name, "binary_tensor_data" in server.extensions) == ("lepton", True)
    assert (model.versions, [(field.name, list(field.shape)) for field in model.inputs]) == (["3"], [("a", [-1, 1]), ("b", [-1, 1])])


async def test_ids_versions_and_the_filter_over_grpc(runtime):
    def use(client):
        inputs = tensors(tritonclient.grpc, a=(np.array([1.0, 2.0]), "FP64"), b=(np.array(["x", "y"], object), "BYTES"))
        wanted = [tritonclient.grpc.InferRequestedOutput("probabilities")]
        return client.infer("m", inputs, request_id="7", outputs=wanted, headers=token()), client.infer("m", inputs, headers=token())

    async with serving(runtime, "3") as place:
        answer, whole = await by_grpc(place, use)
    said = answer.get_response()
    assert (said.id, said.model_version, [output.name for output in said.outputs]) == ("7", "3", ["probabilities"])
    assert answer.as_numpy("probabilities").sum(axis=1) == pytest.approx([1, 1])
    assert whole.as_numpy("prediction").tolist()[0] in (b"no", b"yes")


FIELDS = {
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    **{name: f"{name.lower()}_contents" for name in ("BOOL", "INT64", "UINT64", "FP32", "FP64", "BYTES")},
}


def typed(**columns):
    """A request with contents instead of raw bytes, by tritonclient's own types."""
    request = service_pb2.ModelInferRequest(model_name="m")
    for name, (values, datatype) in columns.items():
        tensor = request.inputs.add(name=name, datatype=datatype, shape=[len(values)])
        cells = [value.encode() if isinstance(value, str) else value for value in values]
        getattr(tensor.contents, FIELDS[datatype]).extend(cells)
    return request


@asynccontextmanager
async def stub(place, **options):
    async with grpc.aio.insecure_channel(place.grpc_address, list(options.items())) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.mark.parametrize("datatype", FIELDS)
async def test_typed_contents_are_answered_with_typed_contents(mixed, datatype):
    columns = {"double": ([1.0, 2.5, 4.0], "FP64"), "integer": ([0, 1, 2], "INT64"), "boolean": ([True, False, True], "BOOL")}
    columns |= {"string": (["x", "y", "z"], "BYTES"), column_of(datatype): (VALUES[datatype].tolist(), datatype)}
    async with serving(mixed) as place, stub(place) as calls:
        call = calls.ModelInfer(typed(**columns), metadata=METADATA)
        answer = await call
        changed = {column_of(datatype): (VALUES[datatype], datatype)}
        raw = await by_grpc(place, lambda client: client.infer("m", table(tritonclient.grpc, **changed), headers=token()))
        assert dict(await call.trailing_metadata())["x-lepton-rows"] == "3"
    assert not answer.raw_output_contents
    assert list(answer.outputs[0].contents.fp64_contents) == raw.as_numpy("prediction").tolist()


def spoiled(change):
    request = typed(a=([1.0], "FP64"), b=(["x"], "BYTES"))
    change(request)
    return request


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda r: setattr(r, "model_name", "other"), "NOT_FOUND", "no model other"),
        (lambda r: setattr(r, "model_version", "9"), "NOT_FOUND", "no model m 9"),
        (lambda r: r.outputs.add(name="other"), "INVALID_ARGUMENT", "no output 'other'"),
        (lambda r: r.raw_input_contents.append(b"12345678"), "INVALID_ARGUMENT", "each has one, or none"),
        (lambda r: r.raw_input_contents.extend([b"12345678", b""]), "INVALID_ARGUMENT", "one of the two"),
        (lambda r: r.inputs[0].ClearField("contents"), "INVALID_ARGUMENT", "data has 0"),
        (lambda r: r.inputs[0].contents.fp32_contents.append(1), "INVALID_ARGUMENT", "belongs into fp64_contents"),
        (lambda r: setattr(r.inputs[0], "datatype", "FP16"), "INVALID_ARGUMENT", "send raw_input_contents"),
        (lambda r: setattr(r.inputs[0], "datatype", "FP99"), "INVALID_ARGUMENT", "not among"),
        (lambda r: setattr(r.inputs[0], "name", "aa"), "INVALID_ARGUMENT", "did you mean 'a'"),
        (lambda r: r.inputs[0].shape.append(1 << 40), "INVALID_ARGUMENT", "too many elements"),
        (lambda r: r.inputs[0].shape.append(-1), "INVALID_ARGUMENT", "whole numbers"),
        (lambda r: r.inputs[0].contents.fp64_contents.__setitem__(0, float("nan")), "INVALID_ARGUMENT", "a"),
        (lambda r: r.inputs[1].contents.bytes_contents.__setitem__(0, b"\xff"), "INVALID_ARGUMENT", "not UTF-8"),
        (lambda r: r.ClearField("inputs"), "INVALID_ARGUMENT", "no rows"),
    ],
)
async def test_errors_are_statuses_with_words(runtime, change, code, words):
    async with serving(runtime) as place, stub(place) as calls:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await calls.ModelInfer(spoiled(change), metadata=METADATA)
        assert (refused.value.code().name, words in refused.value.details()) == (code, True)
        assert await calls.ModelInfer(spoiled(lambda r: None), metadata=METADATA)


async def test_nothing_is_answered_without_the_token(runtime):
    async with serving(runtime) as place, stub(place) as calls:
        for metadata in ((), (("x-lepton-replica-token", "Secret"),)):
            for call, request in ((calls.ServerLive, service_pb2.ServerLiveRequest()), (calls.ModelInfer, typed())):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call(request, metadata=metadata)
                assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_what_is_no_message_is_the_callers_fault(runtime):
    async with serving(runtime) as place, grpc.aio.insecure_channel(place.grpc_address) as channel:
        for method in ("ModelInfer", "ModelReady"):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(
                    b"\n\x01m*\x02\xff\xff\x12\x01\xff", metadata=METADATA
                )
            assert (refused.value.code().name, "no message" in refused.value.details()) == ("INVALID_ARGUMENT", True)


async def test_messages_may_be_as_large_as_bodies_and_no_larger(runtime):
    options = {"grpc.max_send_message_length": -1, "grpc.max_receive_message_length": -1}
    async with serving(runtime) as place, stub(place, **options) as calls:
        request = typed(a=([1.0], "FP64"), b=(["x"], "BYTES"))
        request.inputs[1].contents.bytes_contents[0] = b"x" * (20 << 20)
        assert len((await calls.ModelInfer(request, metadata=METADATA)).outputs) == 2
        request.inputs[1].contents.bytes_contents[0] = b"x" * (40 << 20)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await calls.ModelInfer(request, metadata=METADATA)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_calls_wait_in_the_same_queue_and_leave_it(slow):
    async with serving(slow(0.5), max_rows=1) as place, stub(place) as calls:
        batcher, request = place.replica.batcher, typed(a=([1.0], "FP64"), b=(["x"], "BYTES"))
        first = calls.ModelInfer(request, metadata=METADATA)
        await until(lambda: batcher._busy)
        late = calls.ModelInfer(request, metadata=METADATA, timeout=0.1)
        await until(lambda: batcher._rows == 1)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await calls.ModelInfer(request, metadata=METADATA)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await late
        assert refused.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: batcher._rows == 0)
        gone = calls.ModelInfer(request, metadata=METADATA)
        await until(lambda: batcher._rows == 1)
        gone.cancel()
        await until(lambda: batcher._rows == 0)
        assert (await first).outputs
        assert batcher.statistics.rows == 1


async def test_a_drain_answers_what_is_in_hand_and_takes_no_more(slow):
    async with serving(slow(0.3)) as place, stub(place) as calls:
        request = typed(a=([1.0], "FP64"), b=(["x"], "BYTES"))
        first = calls.ModelInfer(request, metadata=METADATA)
        await until(lambda: place.replica.batcher._busy)
        place.replica.draining = True
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await calls.ModelInfer(request, metadata=METADATA)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert not (await calls.ServerReady(service_pb2.ServerReadyRequest(), metadata=METADATA)).ready
        await place.calls.drain(5)
        assert (await first).outputs


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
