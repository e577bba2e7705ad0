"""One member of a Kafka consumer group.

The client's own heartbeats keep it in its group however long a handler takes; positions are committed when the reader says so.
"""

import asyncio
from collections.abc import Iterable, Sequence

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka.errors import IllegalStateError
from aiokafka.structs import ConsumerRecord, TopicPartition

from libs.errors import AppError, Transient
from libs.events.kafka_cluster import AWAY, Cluster, words
from libs.events.log import Received, receive, unreadable

# How long a poll waits for the group to be divided, before its own time-out counts; and how long everything else may take.
JOIN_SECONDS = 15.0
CALL_SECONDS = 10.0
SESSION_SECONDS = 10.0
HEARTBEAT_SECONDS = 1.0
# The client leaves its group when nobody has polled for that long (5 minutes, did we not say). A handler may take a day.
POLL_SECONDS = 2_000_000.0


class KafkaSubscription:
    """Joins on the first poll, and anew after a failure."""

    def __init__(self, cluster: Cluster, group: str, topics: tuple[str, ...]) -> None:
        self._cluster, self._group, self._topics = cluster, group, topics
        self._member: _Member | None = None

    async def poll(self, limit: int, timeout: float) -> list[Received]:
        """The time-out begins to count once the group has given this member its partitions, and what lay there has been looked at."""
        try:
            member = await self._joined()
            return await member.poll(limit, timeout)
        except AppError:
            raise
        except Exception as error:
            # Whatever has happened to the client, a new one may do better.
            self._leave()
            raise Transient(f"Kafka gives the group {self._group} nothing: {words(error)}") from error

    async def commit(self, received: Sequence[Received]) -> None:
        """Raises Transient where a partition has gone to another member: its events come again there."""
        last: dict[TopicPartition, int] = {}
        for item in received:
            place = TopicPartition(item.event.topic, item.partition)
            last[place] = max(item.position, last.get(place, 0))
        if not last:
            return
        if self._member is None:
            raise Transient(f"the group {self._group} has been left meanwhile")
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._member.commit(last)
        except AWAY as error:
            raise Transient(f"the group {self._group} has not committed: {words(error)}") from error

    async def lag(self) -> int:
        """Of the whole group, not of this member alone."""
        consumer = self._cluster.consumer(self._group)
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await consumer.start()
                return await _lag(consumer, await self._cluster.places(self._topics))
        except AWAY as error:
            raise Transient(f"how far the group {self._group} is behind cannot be told: {words(error)}") from error
        finally:
            self._cluster.end_consumer(consumer)

    async def close(self) -> None:
        """Leaves the group, so that the others need not find out."""
        if member := self._leave():
            await asyncio.wait([member], timeout=5)

    async def _joined(self) -> "_Member":
        if self._member is None:
            consumer = self._cluster.consumer(
                self._group,
                auto_offset_reset="earliest",
                session_timeout_ms=int(SESSION_SECONDS * 1000),
                rebalance_timeout_ms=int(SESSION_SECONDS * 1000),
                heartbeat_interval_ms=int(HEARTBEAT_SECONDS * 1000),
                max_poll_interval_ms=int(POLL_SECONDS * 1000),
            )
            try:
                async with asyncio.timeout(CALL_SECONDS):
                    await self._cluster.make_topics(self._topics)
                    await consumer.start()
                self._member = _Member(consumer, self._topics)
            except BaseException:
                self._cluster.end_consumer(consumer)
                raise
        return self._member

    def _leave(self) -> "asyncio.Task[None] | None":
        member, self._member = self._member, None
        return self._cluster.end_consumer(member.consumer) if member else None


class _Member(ConsumerRebalanceListener):
    """A client in its group, with what it has handed out of the partitions that it holds."""

    def __init__(self, consumer: AIOKafkaConsumer, topics: Sequence[str]) -> None:
        self.consumer = consumer
        self._holds = asyncio.Event()
        self._given: dict[TopicPartition, int] = {}
        self._looked = False
        consumer.subscribe(topics, listener=self)

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._holds.clear()
        self._given.clear()

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._looked = False
        self._holds.set()

    async def poll(self, limit: int, timeout: float) -> list[Received]:
        try:
            async with asyncio.timeout(JOIN_SECONDS):
                await self._holds.wait()
                if await self._behind():
                    timeout = max(timeout, JOIN_SECONDS)
        except TimeoutError:
            # Other members take their time; or something is wrong, which the client says below.
            timeout = 0
        try:
            # The client itself waits without an end while the group is divided anew.
            async with asyncio.timeout(timeout + 1):
                found = await self.consumer.getmany(timeout_ms=int(timeout * 1000), max_records=limit)
        except TimeoutError:
            return []
        for place, records in found.items():
            self._given[place] = records[-1].offset
        return [_received(record) for records in found.values() for record in records]

    async def _behind(self) -> bool:
        """Whether something lies there already: right after joining, it takes longer to come than some polls wait."""
        if self._looked:
            return False
        self._looked = True
        places = list(self.consumer.assignment())
        try:
            end = await self.consumer.end_offsets(places) if places else {}
            return any([await self.consumer.position(place) < end[place] for place in places])
        except IllegalStateError:
            # Divided anew meanwhile.
            return False

    async def commit(self, last: dict[TopicPartition, int]) -> None:
        held = {place: position + 1 for place, position in last.items() if position <= self._given.get(place, -1)}
        if held:
            await self.consumer.commit(held)
        if lost := [f"{place.topic}/{place.partition}" for place in last if place not in held]:
            raise Transient(f"{', '.join(sorted(lost))} went to another member before the commit")


async def _lag(consumer: AIOKafkaConsumer, places: Sequence[TopicPartition]) -> int:
    if not places:
        return 0
    # Without joining, and without reading anything.
    consumer.assign(places)
    consumer.pause(*places)
    first, end = await consumer.beginning_offsets(places), await consumer.end_offsets(places)
    done = await asyncio.gather(*map(consumer.committed, places))
    return sum(max(0, end[place] - max(first[place], position or 0)) for place, position in zip(places, done, strict=True))


def _received(record: "ConsumerRecord[bytes | None, bytes | None]") -> Received:
    data = record.value or b""
    try:
        key = (record.key or b"").decode()
        headers = {name: value.decode() for name, value in record.headers}
    except UnicodeDecodeError:
        return unreadable(record.topic, "", data, record.partition, record.offset, "its key or a header is no text")
    return receive(record.topic, key, headers, data, record.partition, record.offset)
