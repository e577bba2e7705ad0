"""A compute service in a process of its own: `python -m tests.integration.rpc.replica host:port PUBLIC_KEY`; says "ready"."""

import asyncio
import sys

from libs.lifecycle import Lifecycle
from tests.integration.rpc.scene import Compute, server_of


async def main(listen: str, public_key: str) -> None:
    lifecycle = Lifecycle([server_of(Compute(listen, 0.002), listen, public_key)])
    asyncio.get_running_loop().call_later(0.2, lambda: print("ready", flush=True))
    await lifecycle.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
