"""The least that one can do: an ASGI server with ONNX Runtime, one call a request, without one check. `asgi_onnx.py PACKAGE PORT`."""

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import orjson
import uvicorn

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(str(Path(sys.argv[1]) / "whole.onnx"), options, providers=["CPUExecutionProvider"])


async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Callable[[Any], Awaitable[None]]) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message.get("more_body", False)
    tensor = orjson.loads(body)["inputs"][0]
    (output,) = session.run(None, {"x": np.array(tensor["data"], np.float32).reshape(tensor["shape"])})
    answer = {"name": "y", "datatype": "FP32", "shape": output.shape, "data": output.reshape(-1)}
    content = orjson.dumps({"model_name": "m", "outputs": [answer]}, option=orjson.OPT_SERIALIZE_NUMPY)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


uvicorn.run(app, port=int(sys.argv[2]), http="httptools", loop="uvloop", lifespan="off", access_log=False, log_level="warning")
