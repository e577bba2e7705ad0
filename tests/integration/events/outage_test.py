"""The broker away, killed, frozen, late or empty: whatever was emitted has its effect once, and in order."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from sqlalchemy import func, select

from lepton.data.v1.events_pb2 import DatasetVersionReady
from libs.db import Database
from libs.db.infrastructure import outbox
from libs.errors import Transient
from libs.events import EventLogSettings, Relay, open_event_log, topic_of
from libs.events import kafka as module
from tests.integration.events.scene import all_seen, consumer_of, database_in, event_log, ready
from tests.kafka import Broker, broker
from tests.platform import free_port


@pytest.fixture(scope="module")
def own_broker() -> Iterator[Broker]:
    """One that may be stopped."""
    with broker() as started:
        yield started


def killed(broker: Broker) -> None:
    broker.stop(kill=True)


def frozen(broker: Broker) -> None:
    broker.container.pause()


def thawed(broker: Broker) -> None:
    broker.container.unpause()


OUTAGES = {"stopped": (Broker.stop, Broker.start), "killed": (killed, Broker.start), "frozen": (frozen, thawed)}


@pytest.mark.parametrize("outage", OUTAGES)
async def test_an_outage_loses_and_doubles_nothing(own_broker: Broker, own: str, tmp_path: Path, outage: str) -> None:
    away, back = OUTAGES[outage]
    async with database_in(tmp_path) as database, event_log(own_broker.url) as log:
        relay, consumer = Relay(database, log, name=own, interval=0.2), consumer_of(own, database, log)
        await relay.start()
        await consumer.start()
        emitting = asyncio.create_task(emit(database, own, 900))
        await asyncio.sleep(1.5)
        await asyncio.to_thread(away, own_broker)
        # Longer than a publish waits.
        await asyncio.sleep(module.PUBLISH_SECONDS + 4)
        await asyncio.to_thread(back, own_broker)
        await emitting
        await all_seen(database, 900, 120)
        await relay.stop()
        await consumer.stop()
        async with database.read() as session:
            assert (await session.execute(select(func.count()).select_from(outbox))).scalar() == 0


async def emit(database: Database, own: str, count: int) -> None:
    """Over some 15 seconds, whatever happens to the broker."""
    for start in range(0, count, 5):
        async with database.unit() as unit:
            await unit.emit(*[ready(own, n) for n in range(start, start + 5)])
        await asyncio.sleep(0.08)


async def test_a_broker_that_is_away_is_no_flood_of_words(own_broker: Broker, own: str, caplog: pytest.LogCaptureFixture) -> None:
    async with event_log(own_broker.url) as log:
        subscription = log.subscribe(own, [topic_of(DatasetVersionReady)])
        await subscription.poll(1, 0.1)
        caplog.clear()
        await asyncio.to_thread(own_broker.stop)
        for _ in range(10):
            await subscription.poll(1, 0.5)
        said = [record for record in caplog.records if record.name.startswith("aiokafka")]
        await asyncio.to_thread(own_broker.start)
        assert 0 < len(said) < 20


async def test_a_publish_without_a_broker_says_so_in_time_and_the_next_one_works(own_broker: Broker, own: str) -> None:
    async with event_log(own_broker.url) as log:
        await log.publish([ready(own, 1)])
        await asyncio.to_thread(own_broker.stop)
        try:
            async with asyncio.timeout(module.PUBLISH_SECONDS + 2):
                with pytest.raises(Transient, match="not acknowledged"):
                    await log.publish([ready(own, 2)])
        finally:
            await asyncio.to_thread(own_broker.start)
        await repeated(lambda: log.publish([ready(own, 3)]))


async def repeated(call: Callable[[], object]) -> None:
    """As the relay does."""
    async with asyncio.timeout(60):
        while True:
            try:
                await call()  # type: ignore[misc]
                return
            except Transient:
                await asyncio.sleep(0.2)


async def test_a_platform_that_starts_before_its_broker_waits_for_it(own_broker: Broker, own: str) -> None:
    await asyncio.to_thread(own_broker.stop)
    log = open_event_log(EventLogSettings(url=own_broker.url))
    starting = asyncio.create_task(log.start())
    await asyncio.sleep(2)
    assert not starting.done()
    await asyncio.to_thread(own_broker.start)
    await starting
    await log.publish([ready(own, 1)])
    await log.stop()


async def test_a_start_without_any_broker_ends_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 1.0)
    address = f"localhost:{free_port()}"
    log = open_event_log(EventLogSettings(url=f"kafka://{address}"))
    with pytest.raises(Transient, match=f"no Kafka broker of {address}"):
        await log.start()
    await log.stop()
    with pytest.raises(Transient, match="closed"):
        await log.publish([ready("nobody", 1)])


async def test_a_topic_that_was_deleted_is_made_again(own_broker: Broker, own: str) -> None:
    async with event_log(own_broker.url) as log:
        await log.publish([ready(own, 1)])
        admin = AIOKafkaAdminClient(bootstrap_servers=own_broker.address)
        await admin.start()
        await admin.delete_topics([topic_of(DatasetVersionReady)])
        await admin.close()
        await repeated(lambda: log.publish([ready(own, 2)]))
        (left,) = await log.subscribe(own, [topic_of(DatasetVersionReady)]).poll(10, 5)
        assert left.event.message().version.number == 2


async def test_a_broker_that_comes_back_with_nothing_is_worked_with(own: str, tmp_path: Path) -> None:
    """It knows neither topics nor groups nor the producer: what was published before is gone, and what comes now arrives."""
    port = free_port()
    async with database_in(tmp_path) as database:
        with broker(port=port) as first:
            log = open_event_log(EventLogSettings(url=first.url))
            await log.start()
            consumer = consumer_of(own, database, log)
            await consumer.start()
            await log.publish([ready(own, n) for n in range(50)])
            await all_seen(database, 50)
        with broker(port=port):
            await repeated(lambda: log.publish([ready(own, n) for n in range(50, 100)]))
            await all_seen(database, 100, 90)
            await consumer.stop()
            await log.stop()
