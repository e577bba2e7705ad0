"""One worker node of a platform on several machines: says what the machine has, and runs training jobs and replicas on it.

With LEPTON_PLATFORM_LAUNCHER__URL=kubernetes: it speaks for all nodes of a cluster: what is granted on any of
them runs there in a pod. Two such processes, of different LAUNCHER__OWNER, share the work.

`python -m services.standalone.node`; settings as those of compute, training and deployment, under their own names.
"""

import platform

from libs.events import open_event_log
from libs.launcher import open_launcher
from libs.lifecycle import Component, Lifecycle
from libs.process import run
from libs.telemetry import InService
from services.compute import main as compute
from services.compute.settings import Settings as ComputeSettings
from services.deployment import main as deployment
from services.deployment.settings import Settings as DeploymentSettings
from services.training import main as training
from services.training.settings import Settings as TrainingSettings

# Replicas and attempts are handed back before the node is gone.
GRACE_SECONDS = 50.0


def build(own: ComputeSettings) -> Lifecycle:
    """The node that the settings name, by default the host. What runs here has begun before the node is offered."""
    name = own.node_name or platform.node()
    training_settings, deployment_settings = TrainingSettings(), DeploymentSettings()
    if not own.launcher == training_settings.launcher == deployment_settings.launcher:
        raise ValueError(
            "compute, training and deployment differ in LAUNCHER; in one process there is one: say it as LEPTON_PLATFORM_LAUNCHER__…"
        )
    if not own.launcher.in_cluster:
        training_settings = training_settings.model_copy(update={"node": name})
        deployment_settings = deployment_settings.model_copy(update={"node": name})
    log = open_event_log(training_settings.events)
    launcher, launching = open_launcher(own.launcher)
    parts: list[Component] = [
        log,
        *launching,
        InService("training", training.build_worker(training_settings, log, launcher=launcher)),
        InService("deployment", deployment.build_node(deployment_settings, log, launcher)),
        InService("compute", compute.build_agent(own.model_copy(update={"node_name": name}))),
    ]
    return Lifecycle(parts, grace_seconds=GRACE_SECONDS / 2)


if __name__ == "__main__":
    run("node", ComputeSettings(), build, grace_seconds=GRACE_SECONDS)
