"""One worker node of a platform on several machines: says what the machine has, and runs training jobs and replicas on it.

`python -m services.standalone.node`; settings as those of compute, training and deployment, under their own names.
"""

import asyncio
import platform

from libs import telemetry
from libs.events import open_event_log
from libs.lifecycle import Alive, Component, Lifecycle
from libs.telemetry import InService
from services.compute import main as compute
from services.compute.settings import Settings as ComputeSettings
from services.deployment import main as deployment
from services.deployment.settings import Settings as DeploymentSettings
from services.training import main as training
from services.training.settings import Settings as TrainingSettings

# Replicas and attempts are handed back before the node is gone.
GRACE_SECONDS = 25.0


def build(name: str = "") -> Lifecycle:
    """The node `name`, by default the settings' or the host's. What runs here has begun before the node is offered."""
    own = ComputeSettings()
    name = name or own.node_name or platform.node()
    training_settings, deployment_settings = TrainingSettings(node=name), DeploymentSettings(node=name)
    log = open_event_log(training_settings.events)
    parts: list[Component] = [
        log,
        InService("training", training.build_worker(training_settings, log)),
        InService("deployment", deployment.build_node(deployment_settings, log)),
        InService("compute", compute.build_agent(own.model_copy(update={"node_name": name}))),
    ]
    return Lifecycle([Alive(Lifecycle(parts, grace_seconds=GRACE_SECONDS), own.alive_file)], grace_seconds=2 * GRACE_SECONDS)


def main() -> None:
    """Works until SIGTERM or SIGINT."""
    settings = ComputeSettings()
    telemetry.setup(
        "node",
        url=settings.telemetry_url,
        level=settings.log_level,
        metrics_listen=settings.metrics_listen,
        sample=settings.telemetry_sample,
    )
    try:
        asyncio.run(build().run())
    finally:
        telemetry.shutdown()


if __name__ == "__main__":
    main()
