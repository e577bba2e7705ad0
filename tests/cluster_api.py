"""Nodes and pods as a Kubernetes API lists them, for tests: over HTTP, in pages, with field selectors, and away when told.

`python -m tests.cluster_api NODES PODS` serves that many and says at which port.
"""

import asyncio
import gzip
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

# A token as a service account has it; it must not be seen anywhere.
TOKEN = "eyJhbGciOiJSUzI1NiJ9.only-for-tests.c2lnbmF0dXJl"
Body = dict[str, Any]


class ClusterApi:
    """`nodes` and `pods` are what it lists. `status` other than 200: every answer is that error. `hangs`: none answers."""

    def __init__(self, nodes: Sequence[Body] = (), pods: Sequence[Body] = ()) -> None:
        self.nodes, self.pods = list(nodes), list(pods)
        self.status = 200
        self.hangs = False
        # A page after the first is refused, as Kubernetes does when it comes too late.
        self.expires = False
        self.asked: list[str] = []
        self.hung = asyncio.Event()
        self.url = ""
        self._answers: dict[str, bytes] = {}
        self._hanging = asyncio.Event()

    def kubeconfig(self, folder: Path, user: Body | None = None) -> str:
        """A file that names it, and who asks: by default the token."""
        path = folder / "kubeconfig"
        path.write_text(
            json.dumps(
                {
                    "current-context": "c",
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                    "clusters": [{"name": "c", "cluster": {"server": self.url}}],
                    "users": [{"name": "u", "user": user or {"token": TOKEN}}],
                }
            )
        )
        return str(path)

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path_qs)
        if self.hangs:
            self.hung.set()
            await self._hanging.wait()
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return _refusal(401, "Unauthorized")
        if self.status != 200:
            return _refusal(self.status, f"the server answers {self.status}")
        if self.expires and "continue" in request.query:
            return _refusal(410, "The provided continue parameter is too old")
        body = self._answers.get(request.path_qs)
        if body is None:
            body = self._answers[request.path_qs] = gzip.compress(self._page(request), 1)
        return web.Response(body=body, headers={"Content-Type": "application/json", "Content-Encoding": "gzip"})

    def changed(self) -> None:
        """Forgets the pages that it made."""
        self._answers.clear()

    def release(self) -> None:
        """Whoever hangs is answered."""
        self.hangs = False
        self._hanging.set()

    def _page(self, request: web.Request) -> bytes:
        found = self.nodes if request.path.endswith("/nodes") else self.pods
        found = [item for item in found if _selected(item, request.query.get("fieldSelector", ""))]
        begin, size = int(request.query.get("continue", "0")), int(request.query["limit"])
        more = str(begin + size) if begin + size < len(found) else ""
        return json.dumps(
            {"kind": "List", "metadata": {"resourceVersion": "7", "continue": more}, "items": found[begin : begin + size]}
        ).encode()


def _refusal(status: int, message: str) -> web.Response:
    body = json.dumps({"kind": "Status", "status": "Failure", "message": message, "code": status}).encode()
    return web.Response(body=body, status=status, headers={"Content-Type": "application/json"})


def _selected(item: Body, selector: str) -> bool:
    for term in filter(None, selector.split(",")):
        path, _, value = term.partition("!=")
        outer, _, inner = path.partition(".")
        if item.get(outer, {}).get(inner, "") == value:
            return False
    return True


@asynccontextmanager
async def cluster_api(nodes: Sequence[Body] = (), pods: Sequence[Body] = ()) -> AsyncIterator[ClusterApi]:
    """Serves until the block ends."""
    api = ClusterApi(nodes, pods)
    app = web.Application()
    app.router.add_get("/api/v1/nodes", api.answer)
    app.router.add_get("/api/v1/pods", api.answer)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    api.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield api
    finally:
        api.release()
        await runner.cleanup()


def a_node(name: str, *, unschedulable: bool = False, ready: bool = True, **allocatable: str) -> Body:
    """With 16 cores and 64 GiB, and as much beside what counts as a real one has."""
    taints = [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}] if unschedulable else []
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}, "managedFields": _MANAGED[:2]},
        "spec": {"unschedulable": unschedulable, "taints": taints},
        "status": {
            "allocatable": {"cpu": "16", "memory": "64Gi", "pods": "110", **allocatable},
            "conditions": [{"type": "Ready", "status": "True" if ready else "Unknown", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}],
            "images": [{"names": [f"registry.test/image-{n}@sha256:{'0' * 64}"], "sizeBytes": n} for n in range(50)],
            "nodeInfo": {"architecture": "amd64", "operatingSystem": "linux", "kubeletVersion": "v1.34.0"},
        },
    }


def a_pod(name: str, node: str, *, cpu: str = "100m", memory: str = "128Mi", phase: str = "Running", role: str = "") -> Body:
    """With one container, and as much beside what counts as a real one has."""
    return {
        "metadata": {"name": name, "namespace": "others", "labels": {"lepton.dev/role": role} if role else {}, "managedFields": _MANAGED},
        "spec": {
            "nodeName": node,
            "containers": [{"name": "main", "image": "registry.test/image", "resources": {"requests": {"cpu": cpu, "memory": memory}}}],
        },
        "status": {"phase": phase, "podIP": "10.0.0.1"},
    }


# Some 6 KB: who set which field, the bulk of what is listed.
_MANAGED = [
    {"manager": f"manager-{n}", "operation": "Update", "fieldsV1": {f"f:field-{n}-{m}": {".": {}, "f:value": {}} for m in range(40)}}
    for n in range(4)
]


async def _serve(nodes: int, pods: int) -> None:
    names = [f"machine-{n}" for n in range(nodes)]
    async with cluster_api([a_node(name) for name in names], [a_pod(f"pod-{n}", names[n % nodes]) for n in range(pods)]) as api:
        print(api.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
