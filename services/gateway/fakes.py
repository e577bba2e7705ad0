"""What stands behind the gateway in its tests: real gRPC servers with made-up services, and a replica that counts.

For tests alone.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import orjson
from aiohttp import web

from lepton.accounts.v1 import accounts_service_pb2 as accounts_pb2
from lepton.accounts.v1 import workspace_pb2
from lepton.accounts.v1.accounts_service_pb2_grpc import AccountsServiceServicer, add_AccountsServiceServicer_to_server
from lepton.common.v1 import options_pb2, resource_pb2
from lepton.compute.v1.compute_service_pb2_grpc import ComputeServiceServicer, add_ComputeServiceServicer_to_server
from lepton.data.v1 import data_service_pb2, dataset_pb2
from lepton.data.v1.data_service_pb2_grpc import DataServiceServicer, add_DataServiceServicer_to_server
from lepton.deployment.v1 import deployment_service_pb2 as deployment_pb2
from lepton.deployment.v1 import endpoint_pb2
from lepton.deployment.v1.deployment_service_pb2_grpc import DeploymentServiceServicer, add_DeploymentServiceServicer_to_server
from lepton.marketplace.v1 import marketplace_service_pb2 as marketplace_pb2
from lepton.marketplace.v1.marketplace_service_pb2_grpc import MarketplaceServiceServicer, add_MarketplaceServiceServicer_to_server
from lepton.training.v1 import job_pb2, model_pb2
from lepton.training.v1 import training_service_pb2 as training_pb2
from lepton.training.v1.training_service_pb2_grpc import TrainingServiceServicer, add_TrainingServiceServicer_to_server
from libs.errors import AppError, Forbidden, Invalid, NotFound, QuotaExceeded, Transient, Unauthenticated, Violation
from libs.inference import REQUESTS, RESPONSES, SERVICE
from libs.rpc import current_call
from libs.rpc.server import Registration

KEYS = {
    "owner-key": ("acme", options_pb2.ROLE_OWNER),
    "viewer-key": ("acme", options_pb2.ROLE_VIEWER),
    "buyer-key": ("buyers", options_pb2.ROLE_OWNER),
}


class Accounts(AccountsServiceServicer):
    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.keys = {hashlib.sha256(key.encode()).digest(): (key, *value) for key, value in KEYS.items()}
        self.asked = 0
        self.left = 1_000_000
        self.quotas: list[workspace_pb2.Quota] = []
        self.reserved: dict[str, int] = {}

    async def Authenticate(self, request: Any, context: Any) -> Any:
        self.asked += 1
        if request.key_sha256 not in self.keys:
            raise Unauthenticated("unknown")
        key, workspace, role = self.keys[request.key_sha256]
        return accounts_pb2.AuthenticateResponse(workspace=workspace, member=f"{key}@{workspace}", role=role, api_key_id=key)

    async def GetMe(self, request: Any, context: Any) -> Any:
        identity = current_call().identity
        return accounts_pb2.GetMeResponse(
            member=identity.member,
            workspace=workspace_pb2.Workspace(name=identity.workspace),
            role=options_pb2.Role.Name(identity.role),
            quotas=self.quotas,
        )

    async def CreateApiKey(self, request: Any, context: Any) -> Any:
        return accounts_pb2.CreateApiKeyResponse(api_key=workspace_pb2.ApiKey(id="k1", name=request.name), secret="s")

    async def DeleteApiKey(self, request: Any, context: Any) -> Any:
        self.keys = {digest: value for digest, value in self.keys.items() if value[0] != request.id}
        return workspace_pb2.ApiKey(id=request.id)

    async def CreateWorkspace(self, request: Any, context: Any) -> Any:
        return accounts_pb2.CreateWorkspaceResponse(workspace=workspace_pb2.Workspace(name=request.name), secret="s")

    async def SetMember(self, request: Any, context: Any) -> Any:
        return workspace_pb2.Member(email=request.email, role=request.role)

    async def DeleteMember(self, request: Any, context: Any) -> Any:
        return accounts_pb2.DeleteMemberResponse()

    async def ReserveQuota(self, request: Any, context: Any) -> Any:
        self.log.append(f"reserve {request.workspace} {request.at_least}..{request.amount}")
        granted = min(request.amount, self.left)
        if granted < request.at_least:
            raise QuotaExceeded(
                "the plan trial has 0 predictions left this month; pro has more",
                meta={"metric": "predictions", "limit": 10, "used": 10, "remaining": self.left, "plans": ["pro"]},
            )
        self.left -= granted
        self.reserved[request.reservation] = granted
        return accounts_pb2.ReserveQuotaResponse(granted=granted, limit=10, remaining=self.left)

    async def ReleaseQuota(self, request: Any, context: Any) -> Any:
        self.log.append(f"release {request.workspace}")
        self.reserved.pop(request.reservation, None)
        return accounts_pb2.ReleaseQuotaResponse()


class Data(DataServiceServicer):
    def __init__(self) -> None:
        self.requests: list[tuple[Any, str]] = []
        self.versions: dict[str, dataset_pb2.DatasetVersion] = {}
        self.error: Exception | None = None
        self.state = dataset_pb2.VERSION_STATE_READY

    def note(self, request: Any) -> None:
        self.requests.append((request, current_call().idempotency_key))
        if self.error:
            raise self.error

    async def CreateDataset(self, request: Any, context: Any) -> Any:
        self.note(request)
        return dataset_pb2.Dataset(name=request.name, workspace=current_call().identity.workspace, description=request.description)

    async def GetDataset(self, request: Any, context: Any) -> Any:
        self.note(request)
        if request.name != "wdbc":
            raise NotFound.of("dataset", request.name, ["wdbc"])
        return dataset_pb2.Dataset(name=request.name)

    async def ListDatasets(self, request: Any, context: Any) -> Any:
        self.note(request)
        return data_service_pb2.ListDatasetsResponse(datasets=[dataset_pb2.Dataset(name="wdbc")])

    async def DeleteDataset(self, request: Any, context: Any) -> Any:
        self.note(request)
        return data_service_pb2.DeleteDatasetResponse()

    async def CreateTransform(self, request: Any, context: Any) -> Any:
        self.note(request)
        return dataset_pb2.DatasetVersion(dataset=request.name, number=2, state=dataset_pb2.VERSION_STATE_PROCESSING)

    async def IngestContent(self, request: Any, context: Any) -> Any:
        self.note(request)
        version = dataset_pb2.DatasetVersion(dataset=request.name, number=1, state=self.state)
        version.splits.add(name="all", rows=1, file=request.content)
        self.versions[request.name] = version
        return version

    async def GetDatasetVersion(self, request: Any, context: Any) -> Any:
        self.note(request)
        if request.name not in self.versions:
            raise NotFound.of("dataset", request.name, self.versions)
        return self.versions[request.name]

    async def PreviewDatasetVersion(self, request: Any, context: Any) -> Any:
        self.note(request)
        answer = data_service_pb2.PreviewDatasetVersionResponse()
        answer.rows.add().update({"radius": 1.5, "diagnosis": None})
        return answer


class Training(TrainingServiceServicer):
    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.after: list[str] = []
        self.pause = 0.0
        self.breaks = False
        self.files: list[resource_pb2.Artifact] = []

    async def RegisterModelVersion(self, request: Any, context: Any) -> Any:
        self.requests.append((request, current_call().idempotency_key))
        return model_pb2.ModelVersion(model=request.name, number=1, source=model_pb2.MODEL_SOURCE_UPLOADED)

    async def CreateTrainingJob(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return job_pb2.TrainingJob(id="job-1", name=request.name, state=job_pb2.JOB_STATE_QUEUED)

    async def GetTrainingJob(self, request: Any, context: Any) -> Any:
        if request.id != "job-1":
            raise NotFound.of("training job", request.id)
        return job_pb2.TrainingJob(id=request.id)

    async def ListTrainingJobs(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return training_pb2.ListTrainingJobsResponse()

    async def CancelTrainingJob(self, request: Any, context: Any) -> Any:
        return job_pb2.TrainingJob(id=request.id, state=job_pb2.JOB_STATE_CANCELLED)

    async def WatchTrainingJob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.after.append(request.after)
        first = int(request.after or 0)
        for number in range(first + 1, 4):
            yield training_pb2.WatchTrainingJobResponse(event_id=str(number), metric=job_pb2.MetricPoint(name="loss", value=1 / number))
            if self.breaks:
                raise Transient("training starts again")
            await asyncio.sleep(self.pause)
        yield training_pb2.WatchTrainingJobResponse(event_id="4", job=job_pb2.TrainingJob(id=request.id, state=job_pb2.JOB_STATE_SUCCEEDED))

    async def ListModels(self, request: Any, context: Any) -> Any:
        return training_pb2.ListModelsResponse(models=[model_pb2.Model(name="iris", workspace="acme", latest_version=2)])

    async def GetModel(self, request: Any, context: Any) -> Any:
        if request.name != "iris":
            raise NotFound.of("model", request.name, ["iris"])
        model = model_pb2.Model(name="iris", workspace="acme", latest_version=2)
        model.create_time.seconds = 1_700_000_000
        return model

    async def GetModelRuntime(self, request: Any, context: Any) -> Any:
        return model_pb2.ModelRuntime(python="3.11.7", platforms=["any"], packages=[model_pb2.RuntimePackage(name="numpy", version="2.1")])

    async def GetModelVersion(self, request: Any, context: Any) -> Any:
        return model_pb2.ModelVersion(model=request.name, number=request.number, files=self.files)


class Deployment(DeploymentServiceServicer):
    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.replicas: list[deployment_pb2.ReplicaAddress] = []
        self.shares: list[deployment_pb2.RevisionShare] = []
        self.resolved = 0
        self.failures = 0
        self.reports: list[deployment_pb2.TrafficReport] = []
        self.batches: dict[str, Any] = {}
        self.owners: set[str] = {"acme"}

    async def GetEndpoint(self, request: Any, context: Any) -> Any:
        if request.name != "wdbc":
            raise NotFound.of("endpoint", request.name, ["wdbc"])
        return endpoint_pb2.Endpoint(name=request.name, workspace=current_call().identity.workspace)

    async def ListEndpoints(self, request: Any, context: Any) -> Any:
        endpoint = endpoint_pb2.Endpoint(name="wdbc", workspace=current_call().identity.workspace)
        endpoint.create_time.seconds = 1_700_000_000
        return deployment_pb2.ListEndpointsResponse(endpoints=[endpoint])

    async def ResolveEndpoint(self, request: Any, context: Any) -> Any:
        self.resolved += 1
        if request.name != "wdbc" or request.workspace not in self.owners:
            raise NotFound.of("endpoint", request.name, ["wdbc"])
        until = asyncio.get_running_loop().time() + request.wait_seconds
        while not self.replicas and asyncio.get_running_loop().time() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        return deployment_pb2.ResolveEndpointResponse(model="wdbc@1", replicas=self.replicas, shares=self.shares)

    async def ReportTraffic(self, request: Any, context: Any) -> Any:
        self.reports += request.reports
        return deployment_pb2.ReportTrafficResponse()

    async def RecordPredictions(self, request: Any, context: Any) -> Any:
        if self.failures:
            self.failures -= 1
            raise Transient("not now")
        self.log.append(f"record {sum(record.rows for record in request.records)}")
        self.batches[request.batch_id] = request
        return deployment_pb2.RecordPredictionsResponse()


class Marketplace(MarketplaceServiceServicer):
    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.batches: dict[str, Any] = {}

    async def ResolveInvocation(self, request: Any, context: Any) -> Any:
        if request.buyer != "buyers":
            raise Forbidden("subscribe to breast-check first", code="subscription_required")
        return marketplace_pb2.ResolveInvocationResponse(publisher="acme", endpoint="wdbc", subscription="sub-1")

    async def RecordInvocations(self, request: Any, context: Any) -> Any:
        self.log.append(f"record {sum(record.rows for record in request.records)}")
        self.batches[request.batch_id] = request
        return marketplace_pb2.RecordInvocationsResponse()

    async def CreateListing(self, request: Any, context: Any) -> Any:
        raise Invalid.of([Violation("endpoint", "there is none")], code="invalid_spec")


class Behind:
    """All of it, and the order in which things that cost happened."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.accounts = Accounts(self.log)
        self.data = Data()
        self.training = Training()
        self.deployment = Deployment(self.log)
        self.marketplace = Marketplace(self.log)

    def registrations(self) -> list[Registration]:
        return [
            (self.accounts, add_AccountsServiceServicer_to_server),
            (self.data, add_DataServiceServicer_to_server),
            (ComputeServiceServicer(), add_ComputeServiceServicer_to_server),
            (self.training, add_TrainingServiceServicer_to_server),
            (self.deployment, add_DeploymentServiceServicer_to_server),
            (self.marketplace, add_MarketplaceServiceServicer_to_server),
        ]


class Replica:
    """Answers a prediction an instance, a call over gRPC with its tensors, and remembers what it was sent."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.pause = 0.0
        # Of a stream: pieces, of which it breaks off after so many.
        self.pieces, self.breaks_after = 3, 1_000_000
        self.streamed = 0
        self.url = ""
        # What it says instead of an answer, and who went away.
        self.refusal: AppError | None = None
        self.left = 0
        self._runner: web.AppRunner | None = None

    @property
    def address(self) -> deployment_pb2.ReplicaAddress:
        return deployment_pb2.ReplicaAddress(id=self.name, url=self.url, token="token")

    async def start(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _refuse(self, refusal: AppError) -> web.Response:
        problem = {"code": refusal.code, "detail": refusal.detail}
        headers = {"connection": "close"} if refusal.code == "unavailable" else {}
        if "retry_after" in refusal.meta:
            headers["retry-after"] = str(refusal.meta["retry_after"])
        return web.Response(status=refusal.entry.http, body=orjson.dumps(problem), content_type="application/problem+json", headers=headers)

    def _call(self, method: str, body: bytes) -> web.Response:
        request = REQUESTS[method].FromString(body)
        if method == "ModelReady":
            return web.Response(body=RESPONSES[method](ready=True).SerializeToString())
        if method == "ModelMetadata":
            return web.Response(body=RESPONSES[method](name=request.name, platform="lepton").SerializeToString())
        rows = request.inputs[0].shape[0]
        self.log.append(f"answer {rows}")
        answer = RESPONSES[method](model_name=request.model_name, raw_output_contents=request.raw_input_contents)
        for each in request.inputs:
            answer.outputs.add(name=each.name, datatype=each.datatype, shape=each.shape).contents.MergeFrom(each.contents)
        return web.Response(body=answer.SerializeToString(), headers={"x-lepton-rows": str(rows)})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append((request.path, {name.lower(): value for name, value in request.headers.items()}, body))
        if request.headers.get("x-lepton-replica-token") != "token":
            return web.Response(status=401)
        if self.pause:
            try:
                await asyncio.sleep(self.pause)
            except asyncio.CancelledError:
                self.left += 1
                raise
        if self.refusal:
            return self._refuse(self.refusal)
        if request.path.startswith(f"/{SERVICE}/"):
            return self._call(request.path.rpartition("/")[2], body)
        if request.method == "GET":
            return web.json_response({"name": "wdbc", "ready": True})
        if request.path.startswith("/openai/"):
            return await self._speak(request, orjson.loads(body))
        if request.path.endswith(("/generate", "/generate_stream")):
            return await self._write(request, orjson.loads(body))
        if request.path.endswith("/infer"):
            if not body.startswith(b"{"):
                return web.json_response({"error": "no tensors"}, status=400)
            headers = {"inference-header-content-length": "5", "x-lepton-rows": "2", "content-type": "application/octet-stream"}
            return web.Response(body=b"{...}" + bytes(range(256)), headers=headers)
        try:
            instances = orjson.loads(body)["instances"]
        except Exception:
            problem = {"code": "invalid_record", "detail": "it is missing", "errors": [{"field": "instances", "message": "it is missing"}]}
            return web.Response(status=422, body=orjson.dumps(problem), content_type="application/problem+json")
        self.log.append(f"answer {len(instances)}")
        return web.json_response({"predictions": [1] * len(instances)}, headers={"x-lepton-rows": str(len(instances))})

    async def _write(self, request: web.Request, asked: Any) -> web.StreamResponse:
        said = {"model_name": "wdbc", "model_version": "1"}
        if not asked["text_input"]:
            return web.json_response({"error": "text_input: it must be a text"}, status=400)
        words = asked["text_input"].split()[: asked["parameters"].get("max_tokens")]
        used = {"x-lepton-rows": "1", "x-lepton-tokens-in": "5"}
        if not request.path.endswith("_stream"):
            headers = {**used, "x-lepton-tokens-out": str(len(words))}
            return web.json_response({**said, "text_output": asked["text_input"].upper()}, headers=headers)
        return await self._tell(request, used, [{**said, "text_output": word.upper()} for word in words])

    async def _speak(self, request: web.Request, asked: Any) -> web.StreamResponse:
        used = {"x-lepton-rows": "1", "x-lepton-tokens-in": "5"}
        if not asked.get("stream"):
            return web.json_response({"object": "list"}, headers={**used, "x-lepton-tokens-out": "7"})
        chunks = [{"choices": [{"index": 0, "text": f"{number} ", "finish_reason": None}]} for number in range(self.pieces)]
        return await self._tell(request, used, chunks, b"data: [DONE]\n\n")

    async def _tell(self, request: web.Request, used: dict[str, str], pieces: list[Any], end: bytes = b"") -> web.StreamResponse:
        """As events, each cut in two."""
        response = web.StreamResponse(headers={**used, "content-type": "text/event-stream"})
        await response.prepare(request)
        for number, piece in enumerate(pieces):
            if number == self.breaks_after:
                assert request.transport is not None
                request.transport.close()
                return response
            event = b"data: %s\n\n" % orjson.dumps(piece)
            await response.write(event[:9])
            await response.write(event[9:])
            self.streamed += 1
            await asyncio.sleep(self.pause)
        await response.write(end)
        return response
