"""Ray Serve with one replica and its batching. `ray_app.py PACKAGE PORT`."""

import sys
import time
from typing import Any

import numpy as np
import ray
from network import Network
from ray import serve


@serve.deployment(max_ongoing_requests=64)
class Served:
    def __init__(self, package: str) -> None:
        self.network = Network(package)

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.001)
    async def compute(self, rows: list[Any]) -> list[Any]:
        return list(self.network(np.stack(rows)))

    async def __call__(self, request: Any) -> dict[str, Any]:
        tensor = (await request.json())["inputs"][0]
        output = await self.compute(np.array(tensor["data"], np.float32).reshape(tensor["shape"])[0])
        answer = {"name": "y", "datatype": "FP32", "shape": [1, len(output)], "data": output.tolist()}
        return {"model_name": "m", "outputs": [answer]}


ray.init(num_cpus=2, include_dashboard=False, logging_level="warning", object_store_memory=100 << 20)
serve.start(http_options={"port": int(sys.argv[2])})
serve.run(Served.bind(sys.argv[1]), route_prefix="/v2/models/m/infer")
while True:
    time.sleep(3600)
