"""What is shown of endpoints and replicas."""

from typing import Any

from libs.testing import migrated_database
from libs.testing.metrics import metrics_read
from services.deployment.gauges import endpoint_gauges
from services.deployment.tables import Endpoint


def endpoint(name: str, **more: Any) -> Endpoint:
    values = {"model": "m", "model_version": 1, "files": [], "replicas": 1, "resources": {}, "accelerator": "cpu", "device_count": 0}
    times = {"cpu_millis": 1000, "memory_bytes": 2**30, "create_time": 1.0, "update_time": 1.0}
    return Endpoint(id=f"ep-{name}", workspace="acme", name=name, **values, **times, **more)


async def test_endpoints_by_state_without_the_deleted() -> None:
    async with migrated_database("services.deployment") as database:
        async with database.unit() as unit:
            unit.session.add_all([endpoint("a", state="ready"), endpoint("b"), endpoint("c", state="ready", delete_time=2.0)])
        with metrics_read() as read:
            sampler = endpoint_gauges(database)
            await sampler.start()
            await sampler.look()
            assert read("lepton_endpoints") == {("starting",): 1, ("ready",): 1, ("failed",): 0, ("stopped",): 0, ("sleeping",): 0}
            assert read("lepton_replicas") == {("starting",): 0, ("ready",): 0, ("draining",): 0}
            await sampler.stop()
            assert read("lepton_endpoints") == {}
