"""What every event log does."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import ValidationError

from lepton.data.v1.dataset_pb2 import DatasetVersion
from lepton.data.v1.events_pb2 import DatasetVersionReady
from libs.errors import Poison
from libs.events import Event, EventLog, EventLogSettings, open_event_log, replay_dead_letters, waiting_dead_letters
from libs.events.dead_letter import dead_letter, retry_topic
from libs.events.log import Received


@pytest.fixture
def own() -> str:
    """A name that no other test has: they may share a log."""
    return f"t{uuid4().hex[:12]}"


@pytest.fixture
def topic(own: str) -> str:
    return f"lepton.{own}.dataset.v1"


@pytest.fixture(params=["sqlite", "kafka"])
def lasting(request: pytest.FixtureRequest, tmp_path: Path) -> EventLogSettings:
    """A log that outlives a process."""
    if request.param == "kafka":
        return EventLogSettings(url=request.getfixturevalue("kafka").url)
    return EventLogSettings(url=f"sqlite://{tmp_path}/events.db")


@pytest.fixture(params=["memory", "sqlite", "kafka"])
async def log(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EventLog]:
    urls = {
        "memory": lambda: "memory:",
        "sqlite": lambda: f"sqlite://{tmp_path}/events.db",
        "kafka": lambda: request.getfixturevalue("kafka").url,
    }
    log = open_event_log(EventLogSettings(url=urls[request.param]()))
    await log.start()
    yield log
    await log.stop()


def ready(topic: str, number: int, key: str = "acme/iris") -> Event:
    return replace(Event.of(DatasetVersionReady(version=DatasetVersion(dataset="iris", number=number)), key=key), topic=topic)


def numbers_of(received: list[Received]) -> list[int]:
    return [r.event.message().version.number for r in received]


async def numbers(log: EventLog, group: str, topic: str, *, commit: bool = True) -> list[int]:
    subscription = log.subscribe(group, [topic])
    received = await subscription.poll(100, 0.05)
    if commit:
        await subscription.commit(received)
    await subscription.close()
    return numbers_of(received)


async def test_events_come_in_order_with_their_envelope(log: EventLog, topic: str) -> None:
    sent = [ready(topic, n) for n in range(3)]
    await log.publish(sent)
    received = await log.subscribe(topic, [topic]).poll(100, 1)
    assert [r.event for r in received] == sent
    assert received[0].event.source == "/lepton/data"
    assert received[0].event.type == "lepton.data.v1.DatasetVersionReady"


async def test_each_key_keeps_its_order(log: EventLog, topic: str) -> None:
    await log.publish([ready(topic, n, key=f"acme/{n % 7}") for n in range(2000)])
    subscription = log.subscribe(topic, [topic])
    seen: dict[str, list[int]] = {}
    for _ in range(100):
        for item in await subscription.poll(300, 0.5):
            seen.setdefault(item.event.key, []).append(item.event.message().version.number)
        if sum(map(len, seen.values())) == 2000:
            break
    assert seen == {f"acme/{k}": list(range(k, 2000, 7)) for k in range(7)}


async def test_each_group_gets_everything_and_remembers_where_it_was(log: EventLog, topic: str) -> None:
    await log.publish([ready(topic, 1), ready(topic, 2)])
    assert await numbers(log, f"{topic}.a", topic) == [1, 2]
    await log.publish([ready(topic, 3)])
    assert await numbers(log, f"{topic}.a", topic) == [3]
    assert await numbers(log, f"{topic}.b", topic) == [1, 2, 3]


async def test_what_is_not_committed_comes_again(log: EventLog, topic: str) -> None:
    await log.publish([ready(topic, 1)])
    assert await numbers(log, topic, topic, commit=False) == [1]
    assert await numbers(log, topic, topic) == [1]
    assert await numbers(log, topic, topic) == []


async def test_a_part_may_be_committed(log: EventLog, topic: str) -> None:
    await log.publish([ready(topic, n) for n in range(5)])
    subscription = log.subscribe(topic, [topic])
    received = await subscription.poll(100, 1)
    await subscription.commit([])
    await subscription.commit(received[:2])
    await subscription.close()
    assert await numbers(log, topic, topic) == [2, 3, 4]


async def test_other_topics_are_not_seen(log: EventLog, topic: str, own: str) -> None:
    await log.publish([ready(topic, 1)])
    assert await log.subscribe(topic, [f"lepton.{own}.other.v1"]).poll(10, 0.02) == []


async def test_a_waiting_poll_is_woken(log: EventLog, topic: str) -> None:
    subscription = log.subscribe(topic, [topic])
    assert await subscription.poll(10, 0.01) == []
    waiting = asyncio.create_task(subscription.poll(10, 30))
    await asyncio.sleep(0.02)
    await log.publish([ready(topic, 7)])
    assert numbers_of(await asyncio.wait_for(waiting, 5)) == [7]


async def test_a_waiting_poll_is_not_ended_by_other_topics(log: EventLog, topic: str, own: str) -> None:
    subscription = log.subscribe(topic, [topic])
    assert await subscription.poll(10, 0.01) == []
    waiting = asyncio.create_task(subscription.poll(10, 30))
    await asyncio.sleep(0.02)
    await log.publish([ready(f"lepton.{own}.other.v1", 1)])
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await log.publish([ready(topic, 7)])
    assert numbers_of(await asyncio.wait_for(waiting, 5)) == [7]


async def test_a_poll_that_is_broken_off_takes_nothing_with_it(log: EventLog, topic: str) -> None:
    subscription = log.subscribe(topic, [topic])
    assert await subscription.poll(10, 0.01) == []
    waiting = asyncio.create_task(subscription.poll(10, 30))
    await asyncio.sleep(0.02)
    waiting.cancel()
    await log.publish([ready(topic, 7)])
    assert numbers_of(await subscription.poll(10, 5)) == [7]


async def test_a_limit_is_kept_and_the_rest_follows(log: EventLog, topic: str) -> None:
    await log.publish([ready(topic, n) for n in range(5)])
    subscription = log.subscribe(topic, [topic])
    assert len(await subscription.poll(2, 1)) == 2
    assert len(await subscription.poll(10, 1)) == 3


async def test_the_lag_is_what_is_not_committed(log: EventLog, topic: str, own: str) -> None:
    subscription = log.subscribe(topic, [topic, f"lepton.{own}.other.v1"])
    assert await subscription.lag() == 0
    await log.publish([ready(topic, n) for n in range(5)])
    await log.publish([ready(f"lepton.{own}.unrelated.v1", 1)])
    assert await subscription.lag() == 5
    received = await subscription.poll(10, 1)
    assert await subscription.lag() == 5
    await subscription.commit(received[:3])
    assert await subscription.lag() == 2
    await subscription.commit(received)
    assert await subscription.lag() == 0
    assert await log.subscribe(f"{topic}.new", [topic]).lag() == 5


async def test_a_large_event_comes_whole(log: EventLog, topic: str) -> None:
    large = replace(ready(topic, 1), data=bytes(range(256)) * 8192)
    await log.publish([ready(topic, 0), large, ready(topic, 2)])
    subscription, received = log.subscribe(topic, [topic]), []
    for _ in range(20):
        received += await subscription.poll(10, 0.5)
        if len(received) == 3:
            break
    assert received[1].event == large


async def test_dead_letters_wait_and_are_given_back_once(log: EventLog, topic: str, own: str) -> None:
    assert await waiting_dead_letters(log, own) == []
    dead = [dead_letter(own, Received(ready(topic, n, key=f"acme/{n}"), 2, n), Poison("it says nothing")) for n in range(20)]
    await log.publish(dead)
    waiting = await waiting_dead_letters(log, own)
    assert [w.event for w in waiting] == dead
    assert waiting[3].event.extensions["lepton_dead_reason"] == "it says nothing"
    assert waiting[3].event.extensions["lepton_dead_topic"] == topic
    assert (waiting[3].event.extensions["lepton_dead_partition"], waiting[3].event.extensions["lepton_dead_position"]) == ("2", "3")

    assert await replay_dead_letters(log, own, limit=5) == 5
    assert await replay_dead_letters(log, own) == 15
    assert await replay_dead_letters(log, own) == 0
    assert await waiting_dead_letters(log, own) == []
    back, subscription = [], log.subscribe(own, [retry_topic(own)])
    while more := await subscription.poll(100, 0.5):
        back += more
    assert sorted(numbers_of(back)) == list(range(20))
    assert {r.event.extensions["lepton_replay"] for r in back} == {"1"}


async def test_events_outlive_the_process(lasting: EventLogSettings, topic: str) -> None:
    for start in (1, 2):
        log = open_event_log(lasting)
        await log.start()
        assert await numbers(log, topic, topic) == ([] if start == 1 else [1])
        await log.publish([ready(topic, start)])
        await log.stop()


async def test_another_process_is_noticed(lasting: EventLogSettings, topic: str) -> None:
    reader, writer = open_event_log(lasting), open_event_log(lasting)
    await reader.start()
    await writer.start()
    subscription = reader.subscribe(topic, [topic])
    await subscription.poll(1, 0.01)
    waiting = asyncio.create_task(subscription.poll(10, 30))
    await asyncio.sleep(0.02)
    await writer.publish([ready(topic, 9)])
    assert len(await asyncio.wait_for(waiting, 5)) == 1
    await reader.stop()
    await writer.stop()


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="scheme"):
        open_event_log(EventLogSettings(url="carrier-pigeon://loft"))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"url": "kafka://"}, "kafka://host:port"),
        ({"url": "kafka://user:secret@host:9092"}, "username and password"),
        ({"url": "kafka://host:9092/topic"}, "kafka://host:port"),
        ({"username": "lepton"}, "username and password: set both"),
        ({"password": "secret"}, "username and password: set both"),
        ({"mechanism": "SCRAM-SHA-256"}, "mechanism: says how to log in"),
        ({"mechanism": "PLAIN", "username": "lepton", "password": "secret"}, "PLAIN sends the password as it is"),
        ({"mechanism": "GSSAPI", "username": "lepton", "password": "secret"}, "SCRAM-SHA-512"),
        ({"cert_file": "/x.pem"}, "cert_file and key_file: set both"),
        ({"key_file": "/x.key"}, "cert_file and key_file: set both"),
        ({"partitions": 0}, "greater than or equal to 1"),
        ({"replication": 0}, "greater than or equal to 1"),
        ({"retention_seconds": 0}, "greater than 0"),
        ({"url": "sqlite:////x.db", "partitions": 3}, "partitions: a setting for Kafka"),
        ({"url": "memory:", "username": "lepton", "password": "secret"}, "password, username: a setting for Kafka"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words) as refused:
        EventLogSettings(**{"url": "kafka://host:9092", **wrong})
    assert "secret" not in str(refused.value)


def test_tls_files_that_cannot_be_read_are_named() -> None:
    with pytest.raises(ValueError, match=r"/nowhere/ca\.pem"):
        open_event_log(EventLogSettings(url="kafka://host:9092", ca_file="/nowhere/ca.pem"))
