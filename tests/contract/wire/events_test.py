"""Facts between services: what was written once is read for ever, each type has its topic, and reactions are to facts that exist."""

import re
from decimal import Decimal

import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary
from cloudevents.core.formats.json import JSONFormat
from google.protobuf.message import Message

from libs.events import Event, topic_of
from services.accounts import consumers as accounts
from services.deployment import consumers as deployment
from services.marketplace import consumers as marketplace
from services.training import consumers as training
from tests.contract.wire import golden_events as golden
from tests.contract.wire.catalogue import EVENTS, ROOT, service_of

REACTIONS = {
    "accounts": accounts.reactions(Decimal(20)),
    "deployment": deployment.reactions(lambda: None, lambda: None),
    "marketplace": marketplace.reactions(),
    "training": training.consumers(lambda: None),
}


def nothing_unknown(message: Message) -> bool:
    """No bytes of it were kept without being understood: dropping those leaves it as long as it was."""
    known = type(message).FromString(message.SerializeToString())
    known.DiscardUnknownFields()
    return bool(known.ByteSize() == message.ByteSize())


def test_every_event_has_a_golden_and_nothing_else_does() -> None:
    assert len(EVENTS) > 25
    assert {path.stem for path in golden.FOLDER.glob("*.json")} == set(EVENTS), (
        "python -m tests.contract.wire.golden_events writes what is missing"
    )


@pytest.mark.parametrize("name", EVENTS)
def test_golden_is_read_and_comes_back(name: str) -> None:
    kept = golden.read(name)
    event = Event.from_headers(kept["topic"], kept["key"], kept["headers"], kept["data"])
    message = event.message()
    assert type(message) is EVENTS[name]
    assert golden.as_json(message) == kept["message"]
    assert nothing_unknown(message)
    # What relays pass on is what was written.
    assert event.headers() == kept["headers"]
    again = EVENTS[name].FromString(message.SerializeToString())
    assert again == message
    assert event.topic == topic_of(EVENTS[name])
    assert event.source == f"/lepton/{service_of(name)}"


@pytest.mark.parametrize("name", EVENTS)
def test_a_stock_cloudevents_reader_understands_it(name: str) -> None:
    kept = golden.read(name)
    headers = {header: value.encode() for header, value in kept["headers"].items()}
    event = from_binary(KafkaMessage(headers, kept["key"].encode(), kept["data"]), JSONFormat())
    assert (event.get_type(), event.get_source()) == (name, f"/lepton/{service_of(name)}")
    assert event.get_subject() == kept["key"]
    assert event.get_datacontenttype() == "application/protobuf"
    data = event.get_data()
    assert (data.encode() if isinstance(data, str) else data) == kept["data"]


@pytest.mark.parametrize("name", EVENTS)
def test_name_and_topic(name: str) -> None:
    short = name.rsplit(".", 1)[-1]
    assert re.fullmatch(r"([A-Z][a-z]+)+(ed|edBack|Lost|Ready|Withdrawn)", short), "a fact is said in the past tense"
    assert re.fullmatch(rf"lepton\.{service_of(name)}\.[a-z_]+\.v1", topic_of(EVENTS[name]))


@pytest.mark.parametrize("name", EVENTS)
def test_its_service_says_it(name: str) -> None:
    short = name.rsplit(".", 1)[-1]
    folder = ROOT / "services" / service_of(name)
    sources = [path for path in folder.rglob("*.py") if not path.name.endswith("_test.py") and path.name != "consumers.py"]
    assert any(re.search(rf"\b{short}\(", path.read_text()) for path in sources), f"nothing in {folder} makes a {short}"


def test_every_table_of_reactions_is_looked_at() -> None:
    assert {path.parent.name for path in (ROOT / "services").glob("*/consumers.py")} == set(REACTIONS)


@pytest.mark.parametrize("service", REACTIONS)
def test_reactions_are_to_other_services_facts(service: str) -> None:
    for message, handler in REACTIONS[service].items():
        name = message.DESCRIPTOR.full_name
        assert EVENTS[name] is message
        assert service_of(name) != service, "a service knows what it did itself"
        words = re.sub(r"(?<!^)(?=[A-Z])", "_", message.__name__).lower()
        assert handler.__name__ == f"on_{words}"


def test_goldens_are_small_enough_for_every_broker() -> None:
    assert max(golden.path_of(name).stat().st_size for name in EVENTS) < 64 << 10
