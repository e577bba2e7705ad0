"""What every event log does."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lepton.data.v1.dataset_pb2 import DatasetVersion
from lepton.data.v1.events_pb2 import DatasetVersionReady
from libs.events import Event, EventLog, EventLogSettings, open_event_log

TOPIC = "lepton.data.dataset.v1"


def ready(number: int, key: str = "acme/iris") -> Event:
    return Event.of(DatasetVersionReady(version=DatasetVersion(dataset="iris", number=number)), key=key)


@pytest.fixture(params=["memory:", "sqlite://{folder}/events.db"])
async def log(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EventLog]:
    log = open_event_log(EventLogSettings(url=request.param.format(folder=tmp_path)))
    await log.start()
    yield log
    await log.stop()


async def numbers(log: EventLog, group: str, *, commit: bool = True, limit: int = 100) -> list[int]:
    subscription = log.subscribe(group, [TOPIC])
    received = await subscription.poll(limit, 0.05)
    if commit:
        await subscription.commit(received)
    await subscription.close()
    return [r.event.message().version.number for r in received]


async def test_events_come_in_order_with_their_envelope(log: EventLog) -> None:
    sent = [ready(n) for n in range(3)]
    await log.publish(sent)
    received = await log.subscribe("g", [TOPIC]).poll(100, 1)
    assert [r.event for r in received] == sent
    assert received[0].event.source == "/lepton/data"
    assert received[0].event.type == "lepton.data.v1.DatasetVersionReady"


async def test_each_group_gets_everything_and_remembers_where_it_was(log: EventLog) -> None:
    await log.publish([ready(1), ready(2)])
    assert await numbers(log, "a") == [1, 2]
    await log.publish([ready(3)])
    assert await numbers(log, "a") == [3]
    assert await numbers(log, "b") == [1, 2, 3]


async def test_what_is_not_committed_comes_again(log: EventLog) -> None:
    await log.publish([ready(1)])
    assert await numbers(log, "a", commit=False) == [1]
    assert await numbers(log, "a") == [1]
    assert await numbers(log, "a") == []


async def test_other_topics_are_not_seen(log: EventLog) -> None:
    await log.publish([ready(1)])
    assert await log.subscribe("g", ["lepton.data.other.v1"]).poll(10, 0.02) == []


async def test_a_waiting_poll_is_woken(log: EventLog) -> None:
    subscription = log.subscribe("g", [TOPIC])
    waiting = asyncio.create_task(subscription.poll(10, 5))
    await asyncio.sleep(0.02)
    await log.publish([ready(7)])
    received = await asyncio.wait_for(waiting, 1)
    assert [r.event.message().version.number for r in received] == [7]


async def test_a_limit_is_kept_and_the_rest_follows(log: EventLog) -> None:
    await log.publish([ready(n) for n in range(5)])
    subscription = log.subscribe("g", [TOPIC])
    assert len(await subscription.poll(2, 1)) == 2
    assert len(await subscription.poll(10, 1)) == 3


async def test_events_outlive_the_process(tmp_path: Path) -> None:
    settings = EventLogSettings(url=f"sqlite://{tmp_path}/events.db")
    for start in (1, 2):
        log = open_event_log(settings)
        await log.start()
        assert await numbers(log, "g") == ([] if start == 1 else [1])
        await log.publish([ready(start)])
        await log.stop()


async def test_another_process_is_noticed(tmp_path: Path) -> None:
    settings = EventLogSettings(url=f"sqlite://{tmp_path}/events.db")
    reader, writer = open_event_log(settings), open_event_log(settings)
    await reader.start()
    await writer.start()
    waiting = asyncio.create_task(reader.subscribe("g", [TOPIC]).poll(10, 5))
    await asyncio.sleep(0.02)
    await writer.publish([ready(9)])
    assert len(await asyncio.wait_for(waiting, 1)) == 1
    await reader.stop()
    await writer.stop()


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="scheme"):
        open_event_log(EventLogSettings(url="carrier-pigeon://loft"))
