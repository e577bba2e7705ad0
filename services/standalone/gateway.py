"""The gateway of a platform on one machine: its public address, and the inference path.

`python -m services.standalone.gateway HOME`, started and kept running by the platform.
"""

import sys
from urllib.parse import urlsplit

import uvloop

from libs.process import run
from services.gateway.main import Gateway
from services.gateway.settings import GatewaySettings
from services.standalone.wiring import Wiring


def main(path: str) -> None:
    """Answers until SIGTERM, or until the platform is gone."""
    wiring, running = Wiring.of_running(path)
    public, grpc = urlsplit(running.url), urlsplit(f"//{running.grpc}")
    settings = GatewaySettings(
        **wiring.of_gateway,
        host=public.hostname or "",
        port=public.port or 0,
        grpc_port=grpc.port or 0,
        control_url=f"unix:{wiring.control_socket}",
        spool_dir=wiring.work_dir("gateway"),
    )
    run("gateway", settings, Gateway, loop_factory=uvloop.new_event_loop)


if __name__ == "__main__":
    main(sys.argv[1])
