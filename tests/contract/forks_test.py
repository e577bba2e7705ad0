"""A child that a busy service starts is never ended by gRPC's threads on its way to exec."""

import subprocess
import sys

PROGRAM = """
import services.compute.main
import asyncio, tempfile, uvloop
from lepton.compute.v1.compute_service_pb2_grpc import ComputeServiceServicer, ComputeServiceStub, add_ComputeServiceServicer_to_server
from libs.rpc import Client, Server, Signer, Verifier, generate_key

async def main(folder):
    private, public = generate_key()
    server = Server(f"unix:{folder}/s", [(ComputeServiceServicer(), add_ComputeServiceServicer_to_server)], verifier=Verifier(public))
    await server.start()
    client = Client(ComputeServiceStub, server.address, Signer(private, "tests"))
    async def be_busy():
        while True:
            await client.ready()
    busy = asyncio.create_task(be_busy())
    for _ in range(300):
        child = await asyncio.create_subprocess_exec("true", start_new_session=True)
        assert await child.wait() == 0
    busy.cancel()
    await client.close()
    await server.stop()

with tempfile.TemporaryDirectory() as folder:
    uvloop.run(main(folder))
"""


def test_no_child_dies_between_fork_and_exec() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "fork_posix" not in done.stderr
