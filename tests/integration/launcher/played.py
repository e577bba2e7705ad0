"""A cluster of this machine alone, without containers: pods are folders, and the real couriers run in them as processes."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from lightkube.resources.core_v1 import Pod

from libs.launcher.kubernetes.manifests import LAUNCH


class PlayedCluster:
    """See Cluster. What a pod would have at the owner's paths lies below `root`."""

    namespace, server = "here", "https://127.0.0.1:1"

    def __init__(self, root: Path) -> None:
        self._root = root
        self._secrets: dict[str, dict[str, str]] = {}
        self._statuses: dict[str, dict[str, Any]] = {}
        self._changes: asyncio.Queue[tuple[str, Pod]] = asyncio.Queue()
        self._running: dict[str, asyncio.Task[None]] = {}

    async def open(self) -> None: ...

    async def close(self) -> None:
        for name in list(self._running):
            await self.remove(name)

    async def create_job(self, manifest: Mapping[str, Any]) -> str:
        return f"uid-of-{manifest['metadata']['name']}"

    async def create_secret(self, manifest: Mapping[str, Any]) -> None:
        self._secrets[manifest["metadata"]["name"]] = dict(manifest["stringData"])

    async def resume_job(self, name: str) -> None:
        self._running[name] = asyncio.create_task(self._run(name))

    async def jobs(self) -> list[str]:
        return list(self._running)

    async def deployments(self) -> dict[str, int]:
        return {}

    async def pods(self) -> tuple[str, list[Pod]]:
        return "1", [self._pod(name) for name in self._statuses]

    async def watch_pods(self, version: str) -> AsyncIterator[tuple[str, Pod]]:
        while True:
            yield await self._changes.get()

    async def warning_of(self, uid: str) -> str:
        return ""

    async def remove(self, name: str, *, seconds: int = 1) -> None:
        if task := self._running.pop(name, None):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._statuses.pop(name, None) is not None:
            self._changes.put_nowait(("DELETED", Pod.from_dict({"metadata": {"labels": {LAUNCH: name}}, "status": {}})))

    def _pod(self, name: str) -> Pod:
        return Pod.from_dict({"metadata": {"labels": {LAUNCH: name}}, "status": self._statuses[name]})

    def _show(self, name: str, state: dict[str, Any], phase: str) -> None:
        container = {"name": "program", "image": "i", "imageID": "", "ready": True, "restartCount": 0, "state": state}
        self._statuses[name] = {"phase": phase, "podIP": "127.0.0.1", "containerStatuses": [container]}
        self._changes.put_nowait(("MODIFIED", self._pod(name)))

    async def _run(self, name: str) -> None:
        """What a kubelet does with such a pod."""
        pod = await asyncio.to_thread(self._lay_out, name)
        mirror = program = None
        try:
            fetch = await self._start(pod, "fetch", "task.json")
            assert await fetch.wait() == 0
            mirror = await self._start(pod, "mirror", "task.json")
            program = await self._start(pod, "run", "program.json")
            self._show(name, {"running": {}}, "Running")
            code = await program.wait()
            ended = {"exitCode": code, "message": (pod / "told").read_text(), "reason": "Completed"}
            self._show(name, {"terminated": ended}, "Running")
            mirror.terminate()
            await mirror.wait()
            self._show(name, {"terminated": ended}, "Failed" if code else "Succeeded")
        finally:
            for process in (mirror, program):
                if process and process.returncode is None:
                    process.kill()
                    await process.wait()

    def _lay_out(self, name: str) -> Path:
        pod, secret = self._root / name, self._secrets[name]
        (pod / "lepton").mkdir(parents=True)
        for folder in ("control", "state"):
            (pod / "lepton" / folder).mkdir()
        roots = json.loads(secret["task.json"])["roots"]
        for file, text in secret.items():
            if file.endswith(".json"):
                for number, root in enumerate(roots):
                    text = text.replace(root, str(pod / f"folder-{number}"))
                text = text.replace('"/lepton/', f'"{pod}/lepton/').replace("/dev/termination-log", str(pod / "told"))
            (pod / file).write_text(text)
        return pod

    async def _start(self, pod: Path, verb: str, file: str) -> asyncio.subprocess.Process:
        environment = {"PATH": os.environ["PATH"], "LEPTON_POD": pod.name}
        return await asyncio.create_subprocess_exec(sys.executable, "-I", "-S", pod / "courier.py", verb, pod / file, env=environment)
