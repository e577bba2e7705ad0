"""What most would write first: FastAPI, pydantic and torch. `fastapi_torch.py PACKAGE PORT`."""

import sys
from pathlib import Path
from typing import Any

import fastapi
import torch
import uvicorn
from pydantic import BaseModel

model = torch.export.load(Path(sys.argv[1]) / "whole.pt2").module()
torch.set_num_threads(1)
app = fastapi.FastAPI()


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class Infer(BaseModel):
    inputs: list[Tensor]


@app.post("/v2/models/m/infer")
def infer(request: Infer) -> dict[str, Any]:
    tensor = request.inputs[0]
    with torch.inference_mode():
        output = model(torch.tensor(tensor.data).reshape(tensor.shape))
    answer = {"name": "y", "datatype": "FP32", "shape": list(output.shape), "data": output.flatten().tolist()}
    return {"model_name": "m", "outputs": [answer]}


uvicorn.run(app, port=int(sys.argv[2]), access_log=False, log_level="warning")
