"""A Kafka cluster as the platform uses it: how clients reach it, and topics made on first use."""

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code
from aiokafka.structs import TopicPartition

from libs.errors import Transient
from libs.events.dead_letter import is_dead_topic
from libs.events.log import EventLogSettings

log = structlog.get_logger()

# What clients raise while a broker is away or says no.
AWAY = (KafkaError, TimeoutError, OSError)
REQUEST_SECONDS = 20.0
QUIET_SECONDS = 10.0
TALKATIVE = ("aiokafka", "aiokafka.consumer.fetcher", "aiokafka.consumer.group_coordinator", "aiokafka.producer.sender")
# Bytes of one batch for one partition; a single event may be larger, up to what a topic takes.
BATCH_BYTES = 512 * 1024
EVENT_BYTES = 8 * 1024 * 1024


class _Seldom(logging.Filter):
    """The same sentence once in ten seconds: with a broker away the client says a few of them some 60 times a second."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """By what is said, not of whom."""
        now = time.monotonic()
        if now - self._said.get(str(record.msg), -QUIET_SECONDS) < QUIET_SECONDS:
            return False
        self._said[str(record.msg)] = now
        return True


_seldom = _Seldom()


class Cluster:
    """Makes clients, and ends them in the background: with a broker away that takes long, and broken off it leaves their tasks behind."""

    def __init__(self, settings: EventLogSettings) -> None:
        self._settings = settings
        self.servers = settings.url.removeprefix("kafka://")
        self._connection = _connection(settings, self.servers)
        for name in TALKATIVE:
            logging.getLogger(name).addFilter(_seldom)
        self._making = asyncio.Lock()
        self._made: set[str] = set()
        self._consumers: set[AIOKafkaConsumer] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    async def close(self) -> None:
        """Ends all clients that are left, within five seconds."""
        self._closed = True
        for consumer in list(self._consumers):
            self.end_consumer(consumer)
        if self._ending:
            await asyncio.wait(self._ending, timeout=5)

    def producer(self) -> AIOKafkaProducer:
        """A client that is yet to be started."""
        self._require_open()
        return AIOKafkaProducer(enable_idempotence=True, acks="all", max_batch_size=BATCH_BYTES, **self._connection)

    def consumer(self, group: str, **options: Any) -> AIOKafkaConsumer:
        """A client that is yet to be started, and in any case to be ended."""
        self._require_open()
        consumer = AIOKafkaConsumer(group_id=group, enable_auto_commit=False, **self._connection, **options)
        self._consumers.add(consumer)
        return consumer

    def end_consumer(self, consumer: AIOKafkaConsumer) -> asyncio.Task[None]:
        """It leaves its group."""
        self._consumers.discard(consumer)
        return self._end(consumer.stop())

    def end_producer(self, producer: AIOKafkaProducer) -> None:
        """What it could not send is given up."""
        self._end(_abandon(producer))

    def forget_topics(self) -> None:
        """Makes the next call look whether its topics are there."""
        self._made.clear()

    async def places(self, topics: Iterable[str]) -> list[TopicPartition]:
        """Every partition of these topics, of those that there are."""
        async with self._admin() as admin:
            known = set(topics) & set(await admin.list_topics())
            described = await admin.describe_topics(sorted(known)) if known else []
        return [TopicPartition(topic["topic"], part["partition"]) for topic in described for part in topic["partitions"]]

    async def make_topics(self, topics: Iterable[str]) -> None:
        """Makes those that are missing, and returns once each partition has its leader. One that exists stays as it is."""
        async with self._making:
            if not (new := set(topics) - self._made):
                return
            async with self._admin() as admin:
                if missing := new - set(await admin.list_topics()):
                    await self._make(admin, sorted(missing))
                while not _led(await admin.describe_topics(sorted(new))):  # noqa: ASYNC110 (nobody tells when)
                    await asyncio.sleep(0.05)
                self._made |= new

    @asynccontextmanager
    async def _admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        self._require_open()
        admin = AIOKafkaAdminClient(**self._connection)
        try:
            await admin.start()
            yield admin
        finally:
            self._end(admin.close())

    async def _make(self, admin: AIOKafkaAdminClient, names: Sequence[str]) -> None:
        response = await admin.create_topics([_topic(name, self._settings) for name in names])
        for name, code, *reason in response.topic_errors:
            if code and (error := for_code(code)) is not TopicAlreadyExistsError:
                raise error(f"topic {name}: {', '.join(filter(None, reason))}")

    def _require_open(self) -> None:
        if self._closed:
            raise Transient("the event log is closed")

    def _end(self, closing: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(_quietly(closing), name="kafka-client-ends")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task


async def _abandon(producer: AIOKafkaProducer) -> None:
    """As its stop(), which waits for ever until all is sent."""
    if producer._sender is not None:
        await producer._sender.close()
    await producer.client.close()
    producer._closed = True


async def _quietly(closing: Coroutine[Any, Any, None]) -> None:
    try:
        await closing
    except AWAY as error:
        log.warning("kafka_client_not_closed", error=words(error))


def words(error: BaseException) -> str:
    """What went wrong; many of Kafka's errors say nothing but their name."""
    return str(error) or type(error).__name__


def _topic(name: str, settings: EventLogSettings) -> NewTopic:
    config = {
        "cleanup.policy": "delete",
        "retention.ms": str(int(settings.retention_seconds * 1000)),
        "min.insync.replicas": str(min(2, settings.replication)),
        "max.message.bytes": str(EVENT_BYTES + BATCH_BYTES),
    }
    if settings.replication == 1:
        # Nobody else keeps a copy: what is acknowledged is on the disk.
        config["flush.messages"] = "1"
    # People read dead letters, oldest first.
    partitions = 1 if is_dead_topic(name) else settings.partitions
    return NewTopic(name, num_partitions=partitions, replication_factor=settings.replication, topic_configs=config)


def _led(topics: Sequence[dict[str, Any]]) -> bool:
    return all(not t["error_code"] and t["partitions"] and all(p["leader"] >= 0 for p in t["partitions"]) for t in topics)


def _connection(settings: EventLogSettings, servers: str) -> dict[str, Any]:
    """What all clients are given: where, over what, and as whom."""
    tls = bool(settings.ca_file or settings.cert_file)
    connection: dict[str, Any] = {
        "bootstrap_servers": servers.split(","),
        "client_id": "lepton",
        "request_timeout_ms": int(REQUEST_SECONDS * 1000),
        # New partitions and leaders are noticed within that time.
        "metadata_max_age_ms": 30_000,
        "security_protocol": ("SASL_" if settings.username else "") + ("SSL" if tls else "PLAINTEXT"),
    }
    if tls:
        connection["ssl_context"] = _tls(settings)
    if settings.username:
        # At DEBUG it writes down what it sends, and with it the password.
        logging.getLogger("aiokafka.conn").setLevel(logging.WARNING)
        connection |= {
            "sasl_mechanism": settings.mechanism,
            "sasl_plain_username": settings.username,
            "sasl_plain_password": settings.password.get_secret_value(),
        }
    return connection


def _tls(settings: EventLogSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca_file or None)
        if settings.cert_file:
            context.load_cert_chain(settings.cert_file, settings.key_file)
    except OSError as error:
        files = ", ".join(file for file in (settings.ca_file, settings.cert_file, settings.key_file) if file)
        raise ValueError(f"the event log's TLS files ({files}) cannot be used: {error}") from error
    return context
