"""Members of a group share its work, and take over from each other; every effect is made once."""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from libs.errors import Transient
from libs.events import Event, Received, Relay, Subscription
from libs.events import kafka_subscription as module
from tests.integration.events.scene import all_seen, consumer_of, database_in, event_log, ready, seen, until
from tests.kafka import Broker


def numbers(received: list[Received]) -> list[int]:
    return sorted(item.event.message().version.number for item in received)


async def drain(subscription: Subscription, patience: float = 1.0) -> list[Received]:
    found: list[Received] = []
    while more := await subscription.poll(1000, patience):
        found += more
    return found


def events(own: str, count: int) -> tuple[str, list[Event]]:
    """In a topic of their own."""
    topic = f"lepton.{own}.dataset.v1"
    return topic, [replace(ready(own, n), topic=topic) for n in range(count)]


async def test_when_a_member_is_killed_another_takes_over(kafka: Broker, own: str, tmp_path: Path) -> None:
    async with database_in(tmp_path) as database, event_log(kafka.url) as log:
        await log.publish([ready(own, n) for n in range(300)])
        other = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.integration.events.member", kafka.url, own, str(tmp_path), "0.01"
        )
        consumer = consumer_of(own, database, log, seconds=0.01)

        async def at_work(members: int) -> bool:
            return len({row.process for row in await seen(database)}) == members

        async def nothing_left() -> bool:
            return await consumer.lag() == 0

        try:
            await until(lambda: at_work(1))
            await consumer.start()
            for start in range(300, 1200, 100):
                await log.publish([ready(own, n) for n in range(start, start + 100)])
            await until(lambda: at_work(2))
        finally:
            other.kill()
            await other.wait()
        await all_seen(database, 1200, 90)
        await until(nothing_left)
        await consumer.stop()


async def test_a_member_that_leaves_hands_over_at_once(kafka: Broker, own: str) -> None:
    topic, sent = events(own, 100)
    async with event_log(kafka.url) as one, event_log(kafka.url) as two:
        await one.publish(sent)
        first, second = one.subscribe(own, [topic]), two.subscribe(own, [topic])
        assert numbers(await drain(first)) == list(range(100))
        await first.close()
        assert numbers(await asyncio.wait_for(second.poll(1000, 5), 5)) != []


async def test_what_went_to_another_member_is_neither_committed_nor_given_out_again(kafka: Broker, own: str) -> None:
    topic, sent = events(own, 200)
    async with event_log(kafka.url) as one, event_log(kafka.url) as two:
        await one.publish(sent)
        first, second = one.subscribe(own, [topic]), two.subscribe(own, [topic])
        in_hand = await first.poll(30, 5)
        joining = asyncio.create_task(drain(second))
        # The handler of the first is at work; its client gives up half of the partitions meanwhile.
        theirs = await joining
        assert 0 < len(theirs) < 200
        with pytest.raises(Transient, match="another member"):
            await first.commit([*in_hand, *[Received(r.event, r.partition, r.position) for r in theirs]])
        mine = await drain(first)
        assert {r.partition for r in mine}.isdisjoint({r.partition for r in theirs})
        assert set(numbers(mine) + numbers(theirs)) | set(numbers(in_hand)) == set(range(200))
        await second.commit(theirs)
        await first.commit(mine)
        assert await first.lag() == 0


@pytest.mark.parametrize(("patience", "stays"), [(module.POLL_SECONDS, True), (2.0, False)])
async def test_a_long_handler_stays_in_its_group(
    kafka: Broker, own: str, patience: float, stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second round shows that the test can tell: with a limit as clients have it, cut short, the member is thrown out."""
    monkeypatch.setattr(module, "SESSION_SECONDS", 6.0)
    monkeypatch.setattr(module, "POLL_SECONDS", patience)
    topic, sent = events(own, 50)
    async with event_log(kafka.url) as one, event_log(kafka.url) as two:
        await one.publish(sent)
        first = one.subscribe(own, [topic])
        received = await drain(first)
        await asyncio.sleep(9)
        other = two.subscribe(own, [topic])
        if stays:
            await first.commit(received)
            assert await drain(other) == []
        else:
            with pytest.raises(Transient):
                await first.commit(received)
            assert numbers(await drain(other)) == list(range(50))


async def test_two_replicas_that_carry_one_outbox_keep_each_keys_order(kafka: Broker, own: str, tmp_path: Path) -> None:
    async with database_in(tmp_path) as database, event_log(kafka.url) as one, event_log(kafka.url) as two:
        relays = [Relay(database, log, name=own, interval=0.05) for log in (one, two)]
        consumer = consumer_of(own, database, one)
        for component in (*relays, consumer):
            await component.start()
        for start in range(0, 600, 6):
            async with database.unit() as unit:
                await unit.emit(*[ready(own, n) for n in range(start, start + 6)])
        await all_seen(database, 600)
        for component in (*relays, consumer):
            await component.stop()


async def test_groups_that_no_member_is_in_have_a_lag_too(kafka: Broker) -> None:
    own = f"t{uuid4().hex[:12]}"
    topic, sent = events(own, 40)
    async with event_log(kafka.url) as log:
        await log.publish(sent)
        watcher = log.subscribe(own, [topic])
        assert await watcher.lag() == 40
        worker = log.subscribe(own, [topic])
        await worker.commit(await drain(worker))
        assert await watcher.lag() == 0
