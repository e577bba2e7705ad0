"""A platform in a thread, over real sockets: keeps just enough state for the client's flows, and misbehaves when told to."""

import csv
import io
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

KEY = "lk-test"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"

Answer = tuple[int, Any, dict[str, str]]


class FakePlatform:
    """`requests` are those that came; `script` holds answers to give instead of the usual ones, by "METHOD /path"."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.script: dict[str, list[Any]] = {}
        self.datasets: dict[str, list[dict[str, Any]]] = {}
        self.tables: dict[str, list[dict[str, str]]] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.models: dict[str, list[dict[str, Any]]] = {}
        there = [{"name": "numpy", "version": "2.1"}, {"name": "heavy-torch", "version": "2.9+cpu"}]
        self.runtime: dict[str, Any] = {
            "python": "3.12.1",
            "platforms": ["manylinux_2_36_x86_64", "manylinux_2_17_x86_64"],
            "packages": there,
        }
        self.batches: dict[str, dict[str, Any]] = {}
        self.endpoints: dict[str, dict[str, Any]] = {}
        self.predict: Callable[[str, dict[str, Any]], Any] = lambda model, record: 1.0
        self.events: list[bytes] = []
        self.files: dict[str, bytes] = {}
        self.starting = 1
        platform = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 10

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (ConnectionError, ValueError):
                    self.close_connection = True

            def _serve(self) -> None:
                platform._serve(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def asked(self, method: str, path: str) -> list[dict[str, Any]]:
        return [request for request in self.requests if request["method"] == method and request["path"] == path]

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        body = handler.rfile.read(int(handler.headers.get("content-length") or 0))
        request = {
            "method": handler.command,
            "path": unquote(parts.path),
            "query": {key: values[0] for key, values in parse_qs(parts.query).items()},
            "headers": {key.lower(): value for key, value in handler.headers.items()},
            "body": body,
        }
        self.requests.append(request)
        scripted = self.script.get(f"{handler.command} {request['path']}")
        answer = scripted.pop(0) if scripted else self._answer(request)
        if callable(answer):
            answer = answer(request)
        if answer is None:  # break the connection
            handler.close_connection = True
            handler.connection.close()
            return
        status, content, headers = answer
        if isinstance(content, list) and content and isinstance(content[0], bytes):
            self._stream(handler, content)
            return
        payload = content if isinstance(content, bytes) else b"" if content is None else json.dumps(content).encode()
        kind = "application/problem+json" if status >= 400 else "application/json"
        handler.send_response(status)
        for name, value in {"content-type": kind, "x-lepton-trace-id": TRACE, "content-length": str(len(payload)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(payload)

    @staticmethod
    def _stream(handler: BaseHTTPRequestHandler, chunks: list[bytes]) -> None:
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        for chunk in chunks:
            if chunk == b"<break>":
                handler.close_connection = True
                handler.connection.close()
                return
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        handler.wfile.write(b"0\r\n\r\n")

    def _answer(self, request: dict[str, Any]) -> Answer:
        if request["headers"].get("authorization") != f"Bearer {KEY}":
            return problem(401, "unauthenticated", "the key is unknown or revoked; make one with POST /v1/api-keys")
        method, segments = request["method"], request["path"].strip("/").split("/")[1:]
        known = getattr(self, f"_{segments[0].replace('-', '_')}", None)
        found = known(method, segments[1:], request) if known else None
        return found or problem(404, "not_found", f"there is no {segments[0]} '{'/'.join(segments[1:])}' in this workspace")

    def _me(self, *_: Any) -> Answer:
        quotas = [{"metric": "endpoints", "limit": 3, "used": 1, "remaining": 2}]
        workspace = {"name": "acme", "plan": "trial", "role": "owner"}
        return ok({"member": "ada@acme.org", "workspace": workspace, "role": "owner", "quotas": quotas, "surprise": 7})

    def _datasets(self, method: str, rest: list[str], request: dict[str, Any]) -> Answer | None:
        if not rest:
            names = list(self.datasets)
            start = int(request["query"].get("page_token") or 0)
            page = [{"name": name, "kind": "table", "latest_version": len(self.datasets[name])} for name in names[start : start + 2]]
            return ok({"datasets": page, "next_page_token": str(start + 2) if start + 2 < len(names) else ""})
        name = rest[0]
        if rest[1:] == ["content"] and method == "PUT":
            return self._ingest(name, request)
        if name not in self.datasets:
            return None
        versions = self.datasets[name]
        if method == "DELETE" and len(rest) == 1:
            del self.datasets[name]
            return ok({})
        if rest[1:] == ["transforms"]:
            body = json.loads(request["body"])
            lineage = {"kind": "transform", "source": f"{name}@{body.get('version') or len(versions)}", "steps": body["steps"]}
            versions.append({**versions[-1], "number": len(versions) + 1, "lineage": lineage})
            return 201, versions[-1], {}
        if len(rest) >= 3 and rest[1] == "versions":
            number = int(rest[2]) or len(versions)
            if number > len(versions):
                return None
            version = versions[number - 1]
            if rest[3:] == ["preview"]:
                return ok({"columns": version["columns"], "rows": self.tables.get(f"{name}@{number}", [])[:2]})
            if rest[3:] == ["content"]:
                return 200, b"PAR1" + b"x" * 3_000_000, {"content-type": "application/octet-stream"}
            return ok(version)
        return ok({"name": name, "latest_version": len(versions)})

    def _ingest(self, name: str, request: dict[str, Any]) -> Answer:
        body = request["body"]
        if request["query"]["filename"].endswith(".parquet"):
            import io as bytes_io

            from pyarrow import parquet

            rows = parquet.read_table(bytes_io.BytesIO(body)).to_pylist()
        else:
            try:
                rows = list(csv.DictReader(io.StringIO(body.decode())))
            except UnicodeDecodeError:
                detail = "line 1: this is not text"
                return problem(422, "invalid_data", detail, errors=[{"field": "line 1", "message": "this is not text", "suggestions": []}])
        versions = self.datasets.setdefault(name, [])
        columns = [{"name": column, "type": "double", "nullable": False} for column in (rows[0] if rows else [])]
        number = len(versions) + 1
        versions.append({"dataset": name, "number": number, "state": "ready", "rows": len(rows), "columns": columns})
        self.tables[f"{name}@{number}"] = rows
        return 201, versions[-1], {}

    def _training_jobs(self, method: str, rest: list[str], request: dict[str, Any]) -> Answer | None:
        if not rest and method == "POST":
            spec = json.loads(request["body"])
            if isinstance(spec.get("training"), dict) and spec["training"].get("learning_rate") == -1:
                message = "-1 is not a learning rate: use a number above 0"
                error = {"field": "training.learning_rate", "message": message, "suggestions": ["0.001"]}
                return problem(422, "invalid_spec", f"training.learning_rate: {message}", errors=[error])
            id = f"job-{len(self.jobs) + 1}"
            versions = self.models.setdefault(spec["output_model"], [])
            inputs = [{"name": name, "type": "double"} for name in spec.get("features", [])]
            versions.append({"model": spec["output_model"], "number": len(versions) + 1, "signature": {"inputs": inputs, "outputs": []}})
            ref = f"{spec['output_model']}@{len(versions)}"
            self.jobs[id] = {**spec, "id": id, "state": "succeeded", "model_version": ref, "metrics": {"accuracy": 0.97}, "trace_id": TRACE}
            return 201, {**self.jobs[id], "state": "queued", "model_version": "", "metrics": {}}, {}
        if not rest:
            return ok({"training_jobs": list(self.jobs.values()), "next_page_token": ""})
        if rest[0] not in self.jobs:
            return None
        job = self.jobs[rest[0]]
        if rest[1:] == ["events"]:
            return 200, self.events or [event("1", "metric", {"name": "loss", "epoch": 1, "value": 0.5}), event("2", "job", job)], {}
        if rest[1:] == ["logs"]:
            return ok({"logs": [{"number": 1, "stream": "stdout", "text": "hello \x1b[31mred"}], "next_page_token": ""})
        return ok(job)

    def _batch_predictions(self, method: str, rest: list[str], request: dict[str, Any]) -> Answer | None:
        if not rest and method == "POST":
            body = json.loads(request["body"])
            id = f"bp-{len(self.batches) + 1}"
            self.batches[id] = {**body, "id": id, "state": "running", "rows": 4, "rows_done": 0, "output_version": 0}
            return 202, {**self.batches[id], "state": "queued"}, {}
        if not rest:
            return ok({"batch_predictions": list(self.batches.values()), "next_page_token": ""})
        if rest[0] not in self.batches:
            return None
        batch = self.batches[rest[0]]
        if rest[1:] == ["cancel"]:
            batch["state"] = "cancelled"
        elif batch["state"] == "running":
            batch["rows_done"] += 2
            if batch["rows_done"] == batch["rows"]:
                batch.update(state="succeeded", output_version=1)
                self.datasets[batch["output"]] = [{"dataset": batch["output"], "number": 1, "state": "ready", "rows": batch["rows"]}]
        return ok(batch)

    def _models(self, method: str, rest: list[str], request: dict[str, Any]) -> Answer | None:
        if rest[1:] == ["content"] and method == "PUT":
            versions = self.models.setdefault(rest[0], [])
            versions.append({"model": rest[0], "number": len(versions) + 1, "source": "uploaded"})
            return 201, versions[-1], {}
        if not rest or rest[0] not in self.models:
            return ok({"models": [{"name": name} for name in self.models], "next_page_token": ""}) if not rest else None
        if method == "DELETE":
            del self.models[rest[0]]
            return ok({})
        versions = self.models[rest[0]]
        if len(rest) > 3 and rest[3] == "files":
            return 200, self.files["/".join(rest[4:])], {}
        return ok(versions[(int(rest[2]) or len(versions)) - 1])

    def _model_runtime(self, *_: Any) -> Answer:
        return ok(self.runtime)

    def _endpoints(self, method: str, rest: list[str], request: dict[str, Any]) -> Answer | None:
        body = json.loads(request["body"]) if request["body"] else {}
        if not rest and method == "POST":
            if body["name"] in self.endpoints:
                return problem(409, "name_taken", f"the name '{body['name']}' is taken; choose another")
            self.endpoints[body["name"]] = {**body, "state": "starting", "looks": 0}
            return 201, self.endpoints[body["name"]], {}
        if not rest or rest[0] not in self.endpoints:
            return None
        endpoint = self.endpoints[rest[0]]
        if method == "DELETE":
            return ok(self.endpoints.pop(rest[0]) and {})
        if method == "PATCH":
            endpoint.update(body, state="starting", looks=0)
        elif rest[1:] == ["predict"]:
            return ok({"predictions": [self.predict(endpoint["model"], record) for record in body["instances"]]})
        elif method == "GET":
            endpoint["looks"] += 1
            endpoint["state"] = "ready" if endpoint["looks"] > self.starting else "starting"
        return ok(endpoint)

    def _traces(self, method: str, rest: list[str], request: dict[str, Any]) -> Answer:
        root = {"trace_id": rest[0], "span_id": "a", "parent_id": "", "name": "POST /v1/training-jobs", "service": "gateway"}
        spans = [
            {**root, "start_ns": 1000, "end_ns": 3_000_001_000, "status": "ok"},
            {
                **root,
                "span_id": "b",
                "parent_id": "a",
                "name": "CreateTrainingJob",
                "service": "training",
                "start_ns": 2000,
                "end_ns": 9000,
            },
            {**root, "span_id": "c", "parent_id": "b", "name": "train", "start_ns": 10_000, "end_ns": 2_000_000_000, "status": "error"},
            {**root, "span_id": "d", "parent_id": "lost", "name": "orphan", "start_ns": 5000, "end_ns": 4000},
        ]
        return ok({"trace_id": rest[0], "spans": spans})


def ok(content: Any) -> Answer:
    return 200, content, {}


def problem(status: int, code: str, detail: str, **more: Any) -> Answer:
    headers = more.pop("headers", {})
    body = {"type": "about:blank", "title": "t", "status": status, "detail": detail, "code": code, "trace_id": TRACE, "retryable": False}
    return status, {**body, **more}, headers


def event(id: str, kind: str, data: Any) -> bytes:
    return f"id: {id}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode()
