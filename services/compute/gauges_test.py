"""What is shown of nodes and allocations, and how long they waited."""

from lepton.common.v1.resource_pb2 import Resources
from lepton.compute.v1 import node_pb2
from libs.testing import FakeClock, migrated_database
from libs.testing.metrics import metrics_read
from services.compute.gauges import room_gauges
from services.compute.handlers import Scheduler


async def test_nodes_allocations_and_waits() -> None:
    clock = FakeClock()
    scheduler = Scheduler(patience_seconds=60, clock=clock)
    async with migrated_database("services.compute") as database:
        with metrics_read() as read:
            sampler = room_gauges(database, clock)
            async with database.unit() as unit:
                for name, pool in (("n1", "default"), ("n2", "gpu"), ("n3", "gpu")):
                    found = node_pb2.Node(name=name, pool=pool, cpu_millis=2000, memory_bytes=2**33)
                    await scheduler.register_node(unit, found=found)
                await scheduler.update_node(unit, name="n2", state=node_pb2.NODE_STATE_CORDONED)
                await scheduler.update_node(unit, name="n3", state=node_pb2.NODE_STATE_CORDONED)
                for number in range(4):
                    await scheduler.create_allocation(
                        unit, workspace="acme", holder=f"h{number}", resources=Resources(count=1), lease_seconds=3600, priority=0
                    )
            clock.advance(30)
            await sampler.start()
            await sampler.look()
            assert read("lepton_allocations") == {("queued", ""): 2, ("granted", "default"): 2, ("granted", "gpu"): 0}
            assert read("lepton_nodes") == {("ready", "default"): 1, ("ready", "gpu"): 0, ("cordoned", "gpu"): 2}
            assert read("lepton_node_cores") == {("default",): 2, ("gpu",): 0}
            assert read("lepton_allocated_cores") == {("default",): 2, ("gpu",): 0}
            assert read("lepton_allocation_queue_age_seconds") == {(): 30}
            assert read("lepton_allocation_wait_seconds") == {(): 2}
            async with database.unit() as unit:
                await scheduler.update_node(unit, name="n2", state=node_pb2.NODE_STATE_READY)
            assert read("lepton_allocation_wait_seconds") == {(): 4}
            await sampler.stop()
            assert read("lepton_nodes") == {}


async def test_a_unit_that_fails_has_counted_nothing() -> None:
    scheduler = Scheduler(patience_seconds=60)
    async with migrated_database("services.compute") as database:
        with metrics_read() as read:
            try:
                async with database.unit() as unit:
                    await scheduler.register_node(unit, found=node_pb2.Node(name="n1", cpu_millis=2000, memory_bytes=2**33))
                    await scheduler.create_allocation(
                        unit, workspace="acme", holder="h", resources=Resources(count=1), lease_seconds=30, priority=0
                    )
                    raise RuntimeError("before the commit")
            except RuntimeError:
                pass
            assert read("lepton_allocation_wait_seconds") == {}
