"""The task worker of a platform on one machine: runs the data service's and the training service's long work.

`python -m services.standalone.worker HOME`, started and kept running by the platform.
"""

import asyncio
import sys

from libs import telemetry
from libs.events import open_event_log
from libs.lifecycle import Lifecycle
from libs.tasks import TaskQueue, Worker
from libs.telemetry import InService
from services.data import main as data
from services.data.settings import Settings as DataSettings
from services.standalone.wiring import Wiring
from services.training import main as training
from services.training.settings import Settings as TrainingSettings


def main(path: str) -> None:
    """Works until SIGTERM, or until the platform is gone."""
    wiring, _ = Wiring.of_running(path)
    data_settings = DataSettings(**wiring.of("data"), work_dir=wiring.work_dir("data"))
    training_settings = TrainingSettings(**wiring.of("training"), work_dir=wiring.work_dir("training"))
    url, level, sample = training_settings.telemetry_url, training_settings.log_level, training_settings.telemetry_sample
    telemetry.setup("worker", url=url, level=level, sample=sample)
    try:
        asyncio.run(_work(data_settings, training_settings, wiring.broker))
    finally:
        telemetry.shutdown()


async def _work(data_settings: DataSettings, training_settings: TrainingSettings, broker: str) -> None:
    log = open_event_log(data_settings.events)
    queues = [TaskQueue(name, broker) for name in ("data", "training")]
    parts = [
        InService("data", data.build_worker(data_settings, log, queues[0])),
        InService("training", training.build_worker(training_settings, log, queues[1])),
    ]
    await Lifecycle([log, *queues, *parts, Worker(queues)]).run()


if __name__ == "__main__":
    main(sys.argv[1])
