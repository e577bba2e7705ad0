"""An operator sees what could not be processed, and gives it back."""

from pathlib import Path

from lepton.data.v1.dataset_pb2 import DatasetVersion
from lepton.data.v1.events_pb2 import DatasetVersionReady
from libs.errors import Poison
from libs.events import Event, EventLogSettings, Received, open_event_log
from libs.events.dead_letter import dead_letter
from services.standalone import dead_letters
from services.standalone.home import Home


async def put_one(home: Home) -> None:
    log = open_event_log(EventLogSettings(url=f"sqlite://{home.events}"))
    await log.start()
    event = Event.of(DatasetVersionReady(version=DatasetVersion(number=1)), key="acme/iris")
    await log.publish([dead_letter("accounts", Received(event, 0, 7), Poison("it says nothing"))])
    await log.stop()


def test_dead_letters_are_shown_and_given_back_once(tmp_path: Path) -> None:
    import asyncio

    home = Home(tmp_path)
    assert dead_letters.read(home, "accounts", replay=False) == []
    asyncio.run(put_one(home))
    (letter,) = dead_letters.read(home, "accounts", replay=False)
    assert (letter["reason"], letter["topic"], letter["position"]) == ("it says nothing", "lepton.data.dataset.v1", "7")
    assert dead_letters.read(home, "compute", replay=False) == []
    assert len(dead_letters.read(home, "accounts", replay=True)) == 1
    assert dead_letters.read(home, "accounts", replay=True) == []
