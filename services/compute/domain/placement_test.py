"""Laws of the queue: nothing is given twice, nothing waits while it fits, and who waits is told why."""

from hypothesis import given
from hypothesis import strategies as st

from services.compute.domain.placement import Need, Room, Waiting, in_order, place, weight, why_never

GIB = 2**30


def need(cores: float = 1, gpus: int = 0, gib: float = 1) -> Need:
    return Need("gpu" if gpus else "cpu", gpus, int(cores * 1000), int(gib * GIB))


def room(node: str, cores: int = 4, gpus: int = 0, gib: int = 16, *, open: bool = True) -> Room:
    return Room(node, cores * 1000, cores * 1000, gib * GIB, {"gpu": tuple(range(gpus))}, open)


def waiting(id: str, wants: Need, workspace: str = "a", priority: int = 0, since: float = 0.0) -> Waiting:
    return Waiting(id, workspace, wants, priority, since)


needs = st.builds(need, st.sampled_from([0.1, 0.5, 1, 2, 4]), st.integers(0, 3), st.sampled_from([0.25, 1, 8]))
queues = st.lists(st.tuples(needs, st.sampled_from("abc"), st.integers(0, 1)), max_size=12).map(
    lambda rows: [waiting(f"al-{n}", wants, workspace, priority, float(n)) for n, (wants, workspace, priority) in enumerate(rows)]
)
clusters = st.lists(st.tuples(st.integers(1, 8), st.integers(0, 4)), max_size=4).map(
    lambda rows: [room(f"n{n}", cores, gpus) for n, (cores, gpus) in enumerate(rows)]
)


@given(queues, clusters)
def test_nothing_is_given_twice_and_everyone_is_answered(queue: list[Waiting], cluster: list[Room]) -> None:
    placements, reasons = place(queue, cluster, cluster, now=0.0, patience=60.0)
    assert {p.id for p in placements} | set(reasons) == {w.id for w in queue}
    assert not {p.id for p in placements} & set(reasons)
    wants = {w.id: w.need for w in queue}
    for node in cluster:
        here = [p for p in placements if p.node == node.node]
        devices = [d for p in here for d in p.devices]
        assert len(devices) == len(set(devices))
        assert set(devices) <= set(node.devices["gpu"])
        assert sum(wants[p.id].cpu_millis for p in here if not wants[p.id].is_share) <= node.cpu_millis
        assert sum(wants[p.id].cpu_millis for p in here if wants[p.id].is_share) <= node.share_millis
        assert sum(wants[p.id].memory_bytes for p in here) <= node.memory_bytes
        assert all(len(p.devices) == wants[p.id].devices for p in here)


@given(queues, clusters)
def test_nobody_waits_for_what_is_free(queue: list[Waiting], cluster: list[Room]) -> None:
    placements, reasons = place(queue, cluster, cluster, now=0.0, patience=60.0)
    wants = {w.id: w.need for w in queue}
    free = {r.node: r for r in cluster}
    for p in placements:
        free[p.node] = free[p.node].without(wants[p.id], p.devices)
    assert all(r.lacks(wants[id]) for id in reasons for r in free.values())


@given(st.integers(0, 8), st.lists(st.sets(st.integers(0, 8), min_size=1, max_size=3), max_size=3))
def test_a_device_that_is_held_counts_also_where_it_is_no_longer_reported(gpus: int, holders: list[set[int]]) -> None:
    left, held = room("n", gpus=gpus), set[int]()
    for wanted in holders:
        if devices := wanted - held:
            left = left.without(need(gpus=len(devices)), devices)
            held |= devices
    assert len(left.devices["gpu"]) == max(0, gpus - len(held))
    assert not held & set(left.devices["gpu"])


@given(queues)
def test_the_order_is_a_permutation_with_priorities_first(queue: list[Waiting]) -> None:
    ordered = in_order(queue, {})
    assert sorted(w.id for w in ordered) == sorted(w.id for w in queue)
    assert [w.priority for w in ordered] == sorted((w.priority for w in queue), reverse=True)


def test_workspaces_take_turns() -> None:
    queue = [waiting("a1", need(), "a", since=1), waiting("a2", need(), "a", since=2), waiting("b1", need(), "b", since=3)]
    assert [w.id for w in in_order(queue, {})] == ["a1", "b1", "a2"]
    assert in_order(queue, {"a": weight(need())})[0].id == "b1"


def test_a_share_does_not_wait_for_whole_cores() -> None:
    full = room("n", cores=1).without(need(1), ())
    placements, _ = place([waiting("replica", need(0.1))], [full], [room("n", cores=1)], now=0, patience=60)
    assert [p.id for p in placements] == ["replica"]


def test_a_patient_one_is_not_overtaken_for_ever() -> None:
    total = [room("n", cores=4)]
    free = [total[0].without(need(2), ())]
    queue = [waiting("large", need(4), since=0), waiting("small", need(1), since=10)]
    soon, _ = place(queue, free, total, now=20, patience=60)
    late, reasons = place(queue, free, total, now=100, patience=60)
    assert [p.id for p in soon] == ["small"]
    assert late == []
    assert reasons["large"] == "waits for 4 cores: node n has 2 of 4 cores free"


def test_who_waits_is_told_why() -> None:
    total = [room("n", cores=2, gib=4)]
    empty = [total[0].without(need(2), ())]
    _, reasons = place([waiting("x", need(1))], empty, total, now=0, patience=60)
    assert reasons["x"] == "waits for 1 core: node n has 0 of 2 cores free"
    _, reasons = place([waiting("x", need(1))], [], [], now=0, patience=60)
    assert reasons["x"] == "waits for 1 core: no node has registered yet"
    _, reasons = place([waiting("x", need(1))], [room("n", open=False)], [room("n")], now=0, patience=60)
    assert "cordoned or lost" in reasons["x"]
    _, reasons = place([waiting("x", need(8))], [room("n")], [room("n")], now=0, patience=60)
    assert reasons["x"] == "waits for 8 cores: no node has so much now"


def test_what_can_never_be_is_said_at_once() -> None:
    assert why_never(need(1), [room("n")]) == ""
    assert why_never(need(1), []) == ""
    assert "no node can hold 2 gpu" in why_never(need(gpus=2), [room("n", gpus=1)])


def test_a_job_without_devices_spares_the_nodes_that_have_them() -> None:
    placements, _ = place([waiting("x", need(1))], (nodes := [room("gpu", gpus=8), room("plain")]), nodes, now=0, patience=60)
    assert placements[0].node == "plain"
