"""Event log adapter for Kafka: CloudEvents in binary mode, an entity's events in one partition, in order.

Effects are made once by outbox and inbox, not by Kafka's transactions.
"""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.structs import TopicPartition

from libs.errors import AppError, Transient
from libs.events.event import Event
from libs.events.kafka_cluster import AWAY, EVENT_BYTES, Cluster, words
from libs.events.kafka_subscription import KafkaSubscription
from libs.events.log import EventLogSettings

log = structlog.get_logger()

# How long start() looks for a broker, and how long a publish may take.
CONNECT_SECONDS = 60.0
PUBLISH_SECONDS = 10.0

_partition_of = DefaultPartitioner()


class KafkaEventLog:
    """An idempotent producer, made anew after every failure, and subscriptions."""

    def __init__(self, settings: EventLogSettings) -> None:
        self._cluster = Cluster(settings)
        self._producer: AIOKafkaProducer | None = None
        self._publishing = asyncio.Lock()

    async def start(self) -> None:
        """Waits some seconds for a broker: the platform may start before it. Raises Transient where none answers."""
        last = time.monotonic() + CONNECT_SECONDS
        while True:
            try:
                async with self._publishing, asyncio.timeout(PUBLISH_SECONDS):
                    await self._started_producer()
                return
            except AWAY as error:
                self._drop_producer()
                if time.monotonic() > last:
                    where = f"no Kafka broker of {self._cluster.servers} has let us in for {CONNECT_SECONDS:g} s"
                    raise Transient(f"{where}: {words(error)}") from error
                log.warning("kafka_away", brokers=self._cluster.servers, error=words(error))
                await asyncio.sleep(1)
            except BaseException:
                self._drop_producer()
                raise

    async def stop(self) -> None:
        """Leaves the groups that are still joined."""
        self._drop_producer()
        await self._cluster.close()

    async def publish(self, events: Sequence[Event]) -> None:
        """One call at a time. What a failed one had sent may arrive yet: who repeats it doubles events, and loses or swaps none."""
        async with self._publishing:
            try:
                async with asyncio.timeout(PUBLISH_SECONDS):
                    await self._cluster.make_topics({event.topic for event in events})
                    await _send(await self._started_producer(), events)
            except AWAY as error:
                self._drop_producer()
                self._cluster.forget_topics()
                raise Transient(f"Kafka has not acknowledged the events: {words(error)}") from error
            except BaseException:
                self._drop_producer()
                raise

    def subscribe(self, group: str, topics: Sequence[str]) -> KafkaSubscription:
        return KafkaSubscription(self._cluster, group, tuple(sorted(topics)))

    async def _started_producer(self) -> AIOKafkaProducer:
        if self._producer is None:
            self._producer = self._cluster.producer()
            await self._producer.start()
        return self._producer

    def _drop_producer(self) -> None:
        # It may be beyond repair, and it holds what it could not send.
        producer, self._producer = self._producer, None
        if producer:
            self._cluster.end_producer(producer)


async def _send(producer: AIOKafkaProducer, events: Sequence[Event]) -> None:
    """At most one batch a partition is on its way: of two, Kafka might keep the second and not the first."""
    partitions = {topic: sorted(await producer.partitions_for(topic)) for topic in {event.topic for event in events}}
    waiting: dict[TopicPartition, deque[Event]] = defaultdict(deque)
    for event in events:
        partition = _partition_of(event.key.encode(), partitions[event.topic], partitions[event.topic])
        waiting[TopicPartition(event.topic, partition)].append(event)
    while waiting:
        batches = {place: _batch(producer, queue) for place, queue in waiting.items()}
        await asyncio.gather(*[await producer.send_batch(batch, tp.topic, partition=tp.partition) for tp, batch in batches.items()])
        waiting = {place: queue for place, queue in waiting.items() if queue}


def _batch(producer: AIOKafkaProducer, queue: deque[Event]) -> Any:
    """As many events from the head of `queue` as one batch takes; they leave it."""
    batch = producer.create_batch()
    while queue:
        event = queue[0]
        if len(event.data) > EVENT_BYTES:
            raise AppError(
                f"event {event.id} ({event.type}) has {len(event.data)} bytes; at most {EVENT_BYTES} can be sent", code="too_large"
            )
        headers = [(name, value.encode()) for name, value in event.headers().items()]
        if batch.append(key=event.key.encode(), value=event.data, timestamp=None, headers=headers) is None:
            break
        queue.popleft()
    batch.close()
    return batch
