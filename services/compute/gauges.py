"""What the compute service shows of its rows to who watches the platform."""

import time
from collections import Counter
from collections.abc import Callable

from libs.db import Database
from libs.telemetry import Sampler, gauge
from services.compute import repository
from services.compute.domain.placement import CORE
from services.compute.tables import GRANTED, QUEUED, Node

_allocations = gauge("lepton_allocations", "Allocations that wait (in no pool yet) or are held.", ("state", "pool"))
_queue_age = gauge("lepton_allocation_queue_age_seconds", "How long the allocation that waits longest has waited; 0: none waits.")
_nodes = gauge("lepton_nodes", "Nodes: ready, cordoned or lost.", ("state", "pool"))
_cores = gauge("lepton_node_cores", "Processor cores of the nodes that take work.", ("pool",))
_allocated = gauge("lepton_allocated_cores", "Processor cores that allocations hold.", ("pool",))


def room_gauges(database: Database, clock: Callable[[], float] = time.time) -> Sampler:
    """A component."""

    async def sample() -> None:
        async with database.read() as session:
            counts = await repository.live_counts(session)
            nodes = await repository.nodes(session)
            since = await repository.longest_queued_since(session)
        pools = {node.pool for node in nodes}
        _allocations.show({(QUEUED, ""): 0, **{(GRANTED, pool): 0 for pool in pools}, **{(state, pool): n for state, pool, n, _ in counts}})
        _queue_age.show({(): max(0.0, clock() - since) if since is not None else 0.0})
        _nodes.show({**{("ready", pool): 0 for pool in pools}, **Counter((_state(node), node.pool) for node in nodes)})
        _cores.show({(pool,): sum(node.cpu_millis for node in nodes if node.pool == pool and node.open) / CORE for pool in pools})
        held = {pool: millis / CORE for state, pool, _, millis in counts if state == GRANTED}
        _allocated.show({(pool,): held.get(pool, 0.0) for pool in {*pools, *held}})

    return Sampler("compute", sample, [_allocations, _queue_age, _nodes, _cores, _allocated])


def _state(node: Node) -> str:
    return "lost" if node.lost else "ready" if node.open else "cordoned"
