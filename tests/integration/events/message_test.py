"""What lies in Kafka itself: CloudEvents that others read and write, and messages that are no events at all."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.structs import ConsumerRecord
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event, to_binary_event
from cloudevents.core.v1.event import CloudEvent

from lepton.data.v1.dataset_pb2 import DatasetVersion
from lepton.data.v1.events_pb2 import DatasetVersionReady
from libs.events import EventLogSettings, Relay, replay_dead_letters, topic_of, waiting_dead_letters
from libs.events.dead_letter import dead_topic
from tests.integration.events.scene import all_seen, consumer_of, database_in, event_log, ready, seen, until
from tests.kafka import Broker

TOPIC = topic_of(DatasetVersionReady)


@pytest.fixture
async def producer(kafka: Broker) -> AsyncIterator[AIOKafkaProducer]:
    """Somebody else's."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka.address)
    await producer.start()
    yield producer
    await producer.stop()


async def records(kafka: Broker, topic: str, count: int) -> list[ConsumerRecord]:
    """As they lie there."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=kafka.address, auto_offset_reset="earliest")
    await consumer.start()
    found: list[ConsumerRecord] = []
    while len(found) < count:
        for some in (await consumer.getmany(timeout_ms=1000)).values():
            found += some
    await consumer.stop()
    return found


async def test_others_read_our_events_as_cloudevents(kafka: Broker, own: str) -> None:
    event = replace(ready(own, 7), topic=f"lepton.{own}.dataset.v1", extensions={"traceparent": "00-1-2-01"})
    async with event_log(kafka.url) as log:
        await log.publish([event])
    (record,) = await records(kafka, event.topic, 1)
    assert record.key == event.key.encode()
    theirs = from_binary_event(KafkaMessage(dict(record.headers), record.key, record.value))
    assert (theirs.get_id(), theirs.get_source(), theirs.get_type()) == (event.id, event.source, event.type)
    assert theirs.get_subject() == event.key
    assert theirs.get_time().isoformat() == event.time
    assert theirs.get_datacontenttype() == "application/protobuf"
    # Their JSON format makes text of what can be text.
    assert str(theirs.get_data()).encode() == event.data
    assert dict(record.headers)["traceparent"] == b"00-1-2-01"


async def test_we_read_the_cloudevents_of_others(kafka: Broker, own: str, producer: AIOKafkaProducer) -> None:
    topic = f"lepton.{own}.dataset.v1"
    message = DatasetVersionReady(version=DatasetVersion(number=8))
    attributes = {
        "id": own,
        "source": "/theirs",
        "type": "lepton.data.v1.DatasetVersionReady",
        "subject": "acme/iris",
        "datacontenttype": "application/protobuf",
        "partitionkey": "acme/iris",
    }
    theirs = to_binary_event(CloudEvent(attributes, message.SerializeToString()))
    async with event_log(kafka.url) as log:
        subscription = log.subscribe(own, [topic])
        assert await subscription.poll(1, 0.01) == []
        await producer.send_and_wait(topic, theirs.value, str(theirs.key).encode(), headers=list(theirs.headers.items()))
        (received,) = await subscription.poll(10, 10)
    event = received.event
    assert (event.id, event.source, event.key, event.message()) == (own, "/theirs", "acme/iris", message)


async def test_what_is_no_event_goes_to_the_dead_letters_once_and_holds_nothing_up(
    kafka: Broker, own: str, tmp_path: Path, producer: AIOKafkaProducer
) -> None:
    strange: Sequence[tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]] = [
        (b'{"hello": "there"}', b"k", []),
        (None, b"k", []),
        (b"\xff\xfe", b"\xff", [("ce_id", b"\xff")]),
        (b"", b"k", [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"/x")]),
        (b"", b"k", [("ce_specversion", b"7.5"), ("ce_id", b"1"), ("ce_source", b"/x"), ("ce_type", b"x"), ("ce_time", b"")]),
    ]
    reasons = {
        "the message lacks the header 'ce_id'",
        "its key or a header is no text",
        "the message lacks the header 'ce_type'",
        "the message says CloudEvents '7.5', not '1.0'",
    }
    async with database_in(tmp_path) as database, event_log(kafka.url) as log:
        await log.publish([ready(own, n) for n in range(3)])
        positions = []
        for value, key, headers in strange:
            sent = await producer.send_and_wait(TOPIC, value, key, headers=headers)
            positions.append((str(sent.partition), str(sent.offset)))
        await log.publish([ready(own, n) for n in range(3, 6)])
        relay = Relay(database, log, name=own)
        for _ in range(2):
            consumer = consumer_of(own, database, log)

            async def nothing_left() -> bool:
                return await consumer.lag() == 0  # noqa: B023 (called within the round)

            await consumer.start()
            await all_seen(database, 6)
            await until(nothing_left)
            await consumer.stop()
        await relay.stop()
        waiting = [w.event.extensions for w in await waiting_dead_letters(log, own)]
        ours = [w for w in waiting if (w["lepton_dead_partition"], w["lepton_dead_position"]) in positions]
        assert len(ours) == len(strange)
        assert {w["lepton_dead_reason"] for w in ours} == reasons
        assert {w["lepton_dead_topic"] for w in ours} == {TOPIC}


async def test_a_dead_letter_is_replayed_to_its_service_alone(kafka: Broker, own: str, tmp_path: Path) -> None:
    async with database_in(tmp_path) as database, event_log(kafka.url) as log:
        broken = replace(ready(own, 0), data=b"\xff\xff\xff")
        await log.publish([broken, ready(own, 1)])
        consumer, relay = consumer_of(own, database, log), Relay(database, log, name=own, interval=0.2)
        await relay.start()
        await consumer.start()

        async def buried() -> bool:
            return any(w.event.id == broken.id for w in await waiting_dead_letters(log, own))

        await until(buried)
        (dead,) = [w.event for w in await waiting_dead_letters(log, own) if w.event.id == broken.id]
        assert dead.extensions["lepton_dead_reason"] == f"event {broken.id} is no {broken.type}"
        # Somebody has mended it meanwhile.
        mended = replace(dead, data=ready(own, 0).data, id=f"{dead.id}m")
        await log.publish([mended])
        assert await replay_dead_letters(log, own) >= 2

        async def both_seen() -> bool:
            return len(await seen(database)) == 2

        await until(both_seen)
        assert sorted(row.number for row in await seen(database)) == [0, 1]
        await consumer.stop()
        await relay.stop()


async def test_topics_are_made_as_declared(kafka: Broker, own: str) -> None:
    settings = EventLogSettings(url=kafka.url, partitions=3, retention_seconds=3600)
    topic = f"lepton.{own}.dataset.v1"
    async with event_log(settings) as log, event_log(kafka.url) as other:
        await log.publish([replace(ready(own, 1), topic=topic)])
        await log.subscribe(own, [dead_topic(own)]).poll(1, 0.01)
        # Whoever comes later, with settings of his own, leaves them as they are.
        await other.publish([replace(ready(own, 2), topic=topic)])
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
    await admin.start()
    described = {t["topic"]: len(t["partitions"]) for t in await admin.describe_topics([topic, dead_topic(own)])}
    (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    await admin.close()
    assert described == {topic: 3, dead_topic(own): 1}
    config = {entry[0]: entry[1] for resource in answer.resources for entry in resource[4]}
    assert config["retention.ms"] == "3600000"
    assert (config["min.insync.replicas"], config["flush.messages"]) == ("1", "1")
