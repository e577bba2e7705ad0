"""Laws of the queue: nothing is given twice, nothing waits while it fits, and who waits is told why."""

from hypothesis import given
from hypothesis import strategies as st

from services.compute.domain.placement import Need, Placement, Room, Waiting, in_order, place, spread, weight, why_never

GIB = 2**30


def need(cores: float = 1, gpus: int = 0, gib: float = 1) -> Need:
    return Need("gpu" if gpus else "cpu", gpus, int(cores * 1000), int(gib * GIB))


def room(node: str, cores: int = 4, gpus: int = 0, gib: int = 16, *, open: bool = True, group: str = "") -> Room:
    return Room(node, cores * 1000, cores * 1000, gib * GIB, {"gpu": tuple(range(gpus))}, open, group)


def waiting(id: str, wants: Need, workspace: str = "a", priority: int = 0, since: float = 0.0, workers: int = 1) -> Waiting:
    return Waiting(id, workspace, wants, priority, since, workers)


needs = st.builds(need, st.sampled_from([0.1, 0.5, 1, 2, 4]), st.integers(0, 3), st.sampled_from([0.25, 1, 8]))
queues = st.lists(st.tuples(needs, st.sampled_from("abc"), st.integers(0, 1), st.sampled_from([1, 1, 2, 3, 4])), max_size=12).map(
    lambda rows: [waiting(f"al-{n}", wants, where, first, float(n), workers) for n, (wants, where, first, workers) in enumerate(rows)]
)
clusters = st.lists(st.tuples(st.integers(1, 8), st.integers(0, 4), st.sampled_from(["", "a", "b"])), max_size=4).map(
    lambda rows: [room(f"n{n}", cores, gpus, group=group) for n, (cores, gpus, group) in enumerate(rows)]
)


def held(placement: Placement, waiting: Waiting) -> list[tuple[str, Need, tuple[int, ...]]]:
    """Of each node: how much, and which devices."""
    part = waiting.need.times(waiting.workers // len(placement.nodes))
    return [
        (node, part, placement.devices[number * part.devices : (number + 1) * part.devices]) for number, node in enumerate(placement.nodes)
    ]


@given(queues, clusters)
def test_nothing_is_given_twice_and_everyone_is_answered(queue: list[Waiting], cluster: list[Room]) -> None:
    placements, reasons = place(queue, cluster, cluster, now=0.0, patience=60.0)
    assert {p.id for p in placements} | set(reasons) == {w.id for w in queue}
    assert not {p.id for p in placements} & set(reasons)
    asked, rooms = {w.id: w for w in queue}, {r.node: r for r in cluster}
    for p in placements:
        assert len({rooms[name].group for name in p.nodes}) == 1
        assert asked[p.id].workers % len(p.nodes) == 0
        assert len(p.devices) == asked[p.id].need.devices * asked[p.id].workers
        assert len(p.nodes) == 1 or rooms[p.nodes[0]].group, "only a cluster's nodes together"
    for node in cluster:
        here = [(need, devices) for p in placements for name, need, devices in held(p, asked[p.id]) if name == node.node]
        devices = [d for _, indexes in here for d in indexes]
        assert len(devices) == len(set(devices))
        assert set(devices) <= set(node.devices["gpu"])
        assert sum(need.cpu_millis for need, _ in here if not need.is_share) <= node.cpu_millis
        assert sum(need.cpu_millis for need, _ in here if need.is_share) <= node.share_millis
        assert sum(need.memory_bytes for need, _ in here) <= node.memory_bytes


@given(queues, clusters)
def test_nobody_waits_for_what_is_free(queue: list[Waiting], cluster: list[Room]) -> None:
    placements, reasons = place(queue, cluster, cluster, now=0.0, patience=60.0)
    asked = {w.id: w for w in queue}
    free = {r.node: r for r in cluster}
    for p in placements:
        for node, need, devices in held(p, asked[p.id]):
            free[node] = free[node].without(need, devices)
    assert not [id for id in reasons if spread(asked[id].need, asked[id].workers, free.values(), lambda *_: 0)]


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


@given(queues, st.dictionaries(st.sampled_from("abc"), st.integers(0, 8000)))
def test_the_next_is_always_of_the_highest_priority_then_of_who_holds_least_then_the_oldest(
    queue: list[Waiting], held: dict[str, int]
) -> None:
    left, now_held = list(queue), dict(held)
    for first in in_order(queue, held):
        assert first == min(left, key=lambda w: (-w.priority, now_held.get(w.workspace, 0), w.since, w.id))
        left.remove(first)
        now_held[first.workspace] = now_held.get(first.workspace, 0) + weight(first.need) * first.workers
    assert not left


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


def test_what_waits_hears_what_is_left_not_what_was_free_before_others_got_it() -> None:
    _, reasons = place([waiting("first", need(1)), waiting("next", need(1), since=1)], [room("n", 1)], [room("n", 1)], now=2, patience=60)
    assert reasons == {"next": "waits for 1 core: node n has 0 of 1 cores free"}


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
    assert why_never(waiting("x", need(1)), [room("n")]) == ""
    assert why_never(waiting("x", need(1)), []) == ""
    assert "no node can hold 2 gpu" in why_never(waiting("x", need(gpus=2)), [room("n", gpus=1)])
    apart, together = [room("n"), room("m")], [room("n", group="a"), room("m", group="a")]
    assert "no node can hold 6 workers with 1 core each" in why_never(waiting("x", need(1), workers=6), apart)
    assert why_never(waiting("x", need(1), workers=6), together) == ""
    assert why_never(waiting("x", need(1), workers=7), together), "7 cannot be as many on each of two"


def test_a_gang_has_all_its_places_or_none() -> None:
    nodes = [room("n1", group="a"), room("n2", group="a"), room("n3", group="b"), room("n4")]
    placements, _ = place([waiting("x", need(1), workers=8)], nodes, nodes, now=0, patience=60)
    assert [p.nodes for p in placements] == [("n1", "n2")]
    free = [nodes[0].without(need(1), ()), *nodes[1:]]
    placements, reasons = place([waiting("x", need(1), workers=8)], free, nodes, now=0, patience=60)
    assert placements == []
    assert reasons["x"].startswith("waits for 8 workers with 1 core each: node ")
    placements, _ = place([waiting("x", need(1), workers=4)], free, nodes, now=0, patience=60)
    assert len(placements[0].nodes) == 1, "one node, where one suffices"


def test_a_patient_gang_is_not_overtaken_for_ever() -> None:
    total = [room("n1", group="a"), room("n2", group="a")]
    free = [each.without(need(1), ()) for each in total]
    queue = [waiting("gang", need(4), since=0, workers=2), waiting("small", need(1), since=10)]
    assert [p.id for p in place(queue, free, total, now=20, patience=60)[0]] == ["small"]
    assert place(queue, free, total, now=100, patience=60)[0] == []


def test_a_job_without_devices_spares_the_nodes_that_have_them() -> None:
    placements, _ = place([waiting("x", need(1))], (nodes := [room("gpu", gpus=8), room("plain")]), nodes, now=0, patience=60)
    assert placements[0].nodes == ("plain",)
