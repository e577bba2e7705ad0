"""A whole platform with a trained model at the endpoint "m", its gateway on this process's core and everything else on the other ones.

`python -m tools.bench_serving.gateway PACKAGES PORT`
"""

import io
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

import leptonai as la
from tools.bench_serving.load import TOKEN
from tools.bench_serving.packages import COLUMNS

CLASSES, ROWS = 10, 600


def main() -> None:
    port = int(sys.argv[2])
    core = os.sched_getaffinity(0)
    others = set(range(os.cpu_count() or 1)) - core or core
    os.sched_setaffinity(0, others)
    with tempfile.TemporaryDirectory(prefix="lepton-bench-home-") as home:
        environment = {**os.environ, "LEPTON_HOME": home, "LEPTON_API_KEY": TOKEN, "LEPTON_PLATFORM_TELEMETRY_SAMPLE": "0.01"}
        lepton = str(Path(sys.executable).with_name("lepton"))
        platform = subprocess.Popen([lepton, "up", "--port", str(port), "--json"], env=environment, stdout=subprocess.PIPE)
        signal.signal(signal.SIGTERM, lambda *_: platform.terminate())
        try:
            assert platform.stdout
            platform.stdout.readline()  # It answers.
            deploy(la.Client(TOKEN, f"http://127.0.0.1:{port}"))
            for process in psutil.Process(platform.pid).children(recursive=True):
                if "services.standalone.gateway" in process.cmdline():
                    process.cpu_affinity(list(core))
            platform.wait()
        finally:
            platform.terminate()
            platform.wait()


def deploy(client: la.Client) -> None:
    """The endpoint "m", of a model that is trained for it."""
    numbers = random.Random(1)
    table = io.StringIO()
    table.write(",".join([*COLUMNS, "label"]) + "\n")
    for number in range(ROWS):
        table.write(",".join([*(f"{numbers.gauss(number % CLASSES, 1):.4f}" for _ in COLUMNS), f"c{number % CLASSES}"]) + "\n")
    version = client.datasets.upload("bench", table.getvalue().encode(), filename="bench.csv")
    job = client.training_jobs.create(
        dataset=version.ref,
        task="classification",
        target="label",
        output_model="bench",
        architecture="mlp",
        params={"hidden": [128]},
        epochs=3,
    )
    client.training_jobs.wait(job, progress=False)
    client.endpoints.create("m", "bench@1")
    client.endpoints.wait_ready("m")


if __name__ == "__main__":
    main()
