"""The gRPC face of the deployment service."""

import asyncio
import time
from typing import Any
from weakref import WeakValueDictionary

from lepton.deployment.v1 import batch_prediction_pb2, endpoint_pb2
from lepton.deployment.v1 import deployment_service_pb2 as pb
from lepton.deployment.v1.deployment_service_pb2_grpc import DeploymentServiceServicer
from libs.db import Database, page_size, page_token, start_after
from libs.errors import AppError
from libs.service import Edge
from services.deployment import repository, wire
from services.deployment.batch_planner import BatchPlanner
from services.deployment.domain.scaling import Scaling
from services.deployment.handlers import batch_admission, batches, endpoints, predictions, traffic
from services.deployment.handlers.admission import Peers, admit, find_model, give_back, reserved, traceparent
from services.deployment.handlers.endpoints import Changes
from services.deployment.handlers.scaling import load_of
from services.deployment.reconciler import Reconciler
from services.deployment.resolution import Resolver

LISTED_REPLICAS = 100
LISTED_REVISIONS = 100
LISTED_DECISIONS = 20


class DeploymentServicer(Edge, DeploymentServiceServicer):
    """Every method but those of other services sees the caller's workspace alone."""

    def __init__(self, database: Database, peers: Peers, reconciler: Reconciler, resolver: Resolver, planner: BatchPlanner) -> None:
        super().__init__(database)
        self._planner = planner
        self._peers, self._reconciler, self._resolver = peers, reconciler, resolver
        # A name's quota is taken and given back by name: making and deleting take turns.
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def CreateEndpoint(self, request: pb.CreateEndpointRequest, context: Any) -> endpoint_pb2.Endpoint:
        scaling = wire.scaling_of(request) or Scaling()
        async with self._turn(request.name):
            async with self.unit(request) as unit:
                # Before anything is asked or reserved; and if it was answered before, that answer is given here.
                await endpoints.require_free(unit, workspace=self.workspace, name=request.name)
            needs = wire.needs_of(request.resources)
            served = await admit(self._peers, request.model, needs)
            async with reserved(self.database, self._peers, self.workspace, request.name), self.unit(request) as unit:
                endpoint, live = await endpoints.create_endpoint(
                    unit,
                    workspace=self.workspace,
                    name=request.name,
                    served=served,
                    scaling=scaling,
                    needs=needs,
                    traceparent=traceparent(),
                    now=time.time(),
                )
                unit.after_commit(self._reconciler.wake)
                return await unit.reply(wire.endpoint_message(endpoint, live))

    async def GetEndpoint(self, request: pb.GetEndpointRequest, context: Any) -> endpoint_pb2.Endpoint:
        async with self.read() as session:
            endpoint = await repository.get_endpoint(session, self.workspace, request.name)
            live = await repository.live_replicas(session, [endpoint])
        return wire.endpoint_message(endpoint, live[endpoint.id])

    async def ListEndpoints(self, request: pb.ListEndpointsRequest, context: Any) -> pb.ListEndpointsResponse:
        limit, after = page_size(request.page_size), start_after(request.page_token)
        async with self.read() as session:
            found = await repository.list_endpoints(session, self.workspace, after=after, limit=limit + 1)
            live = await repository.live_replicas(session, found)
        return pb.ListEndpointsResponse(
            endpoints=[wire.endpoint_message(endpoint, live[endpoint.id]) for endpoint in found[:limit]],
            next_page_token=page_token(found[limit - 1].name) if len(found) > limit else "",
        )

    async def UpdateEndpoint(self, request: pb.UpdateEndpointRequest, context: Any) -> endpoint_pb2.Endpoint:
        scaling, rollout = wire.scaling_of(request), wire.rollout_of(request.rollout) if request.HasField("rollout") else None
        async with self.read() as session:
            await repository.get_endpoint(session, self.workspace, request.name)
        served = await find_model(self._peers, request.model) if request.HasField("model") else None
        changes = Changes(served, scaling, rollout, [(each.revision, each.percent) for each in request.traffic])
        async with self.unit(request) as unit:
            endpoint, live = await endpoints.update_endpoint(
                unit,
                workspace=self.workspace,
                name=request.name,
                changes=changes,
                traceparent=traceparent(),
                now=time.time(),
            )
            unit.after_commit(self._reconciler.wake)
            return await unit.reply(wire.endpoint_message(endpoint, live))

    async def DeleteEndpoint(self, request: pb.DeleteEndpointRequest, context: Any) -> pb.DeleteEndpointResponse:
        async with self._turn(request.name):
            async with self.unit(request) as unit:
                await endpoints.delete_endpoint(unit, workspace=self.workspace, name=request.name, now=time.time())
                unit.after_commit(self._reconciler.wake)
                answer = await unit.reply(pb.DeleteEndpointResponse())
            try:
                await give_back(self.database, self._peers, self.workspace, request.name)
            except AppError:
                pass  # EndpointDeleted will do it.
            return answer

    async def ListReplicas(self, request: pb.ListReplicasRequest, context: Any) -> pb.ListReplicasResponse:
        async with self.read() as session:
            endpoint = await repository.get_endpoint(session, self.workspace, request.name)
            found = await repository.last_replicas(session, endpoint, LISTED_REPLICAS)
        return pb.ListReplicasResponse(replicas=[wire.replica_message(replica) for replica in found])

    async def ListRevisions(self, request: pb.ListRevisionsRequest, context: Any) -> pb.ListRevisionsResponse:
        async with self.read() as session:
            endpoint = await repository.get_endpoint(session, self.workspace, request.name)
            found = await repository.last_revisions(session, endpoint, LISTED_REVISIONS)
            live = (await repository.live_replicas(session, [endpoint]))[endpoint.id]
            seen = await repository.traffic_of(session, endpoint, now=time.time())
        slow = {number: p95 for number, (_, p95) in seen.items()}
        return pb.ListRevisionsResponse(revisions=[wire.revision_message(each, live, slow.get(each.number, 0.0)) for each in found])

    async def GetEndpointScaling(self, request: pb.GetEndpointScalingRequest, context: Any) -> endpoint_pb2.EndpointScaling:
        async with self.read() as session:
            endpoint = await repository.get_endpoint(session, self.workspace, request.name)
            live = (await repository.live_replicas(session, [endpoint]))[endpoint.id]
            revisions = (await repository.wanted_revisions(session, [endpoint]))[endpoint.id]
            seen = await repository.traffic_of(session, endpoint, now=time.time())
            decisions = await repository.last_decisions(session, endpoint, LISTED_DECISIONS)
        load = load_of(revisions, {number: load for number, (load, _) in seen.items()})
        return wire.endpoint_scaling_message(endpoint, live, load, decisions)

    async def ResolveEndpoint(self, request: pb.ResolveEndpointRequest, context: Any) -> pb.ResolveEndpointResponse:
        return wire.addresses_message(await self._resolver.resolve(request.workspace, request.name, request.wait_seconds))

    async def ReportTraffic(self, request: pb.ReportTrafficRequest, context: Any) -> pb.ReportTrafficResponse:
        async with self.unit(request) as unit:
            await traffic.report_traffic(unit, gateway=request.gateway, reports=request.reports, now=time.time())
            return await unit.reply(pb.ReportTrafficResponse())

    async def RecordPredictions(self, request: pb.RecordPredictionsRequest, context: Any) -> pb.RecordPredictionsResponse:
        async with self.unit(request) as unit:
            await predictions.record_predictions(unit, batch_id=request.batch_id, records=request.records, now=time.time())
            return await unit.reply(pb.RecordPredictionsResponse())

    # Batch predictions

    async def CreateBatchPrediction(self, request: pb.CreateBatchPredictionRequest, context: Any) -> batch_prediction_pb2.BatchPrediction:
        async with self.unit(request):
            pass  # If it was answered before, that answer is given here.
        batch = await batch_admission.admit(self._peers, self.workspace, request, self._planner.part_rows)
        async with self.database.unit() as unit:
            await batches.begin_batch(unit, batch)
        await batch_admission.reserve(self.database, self._peers, batch)
        async with self.unit(request) as unit:
            made = await batches.confirm_batch(unit, workspace=self.workspace, id=batch.id)
            unit.after_commit(self._planner.wake)
            return await unit.reply(wire.batch_message(made))

    async def GetBatchPrediction(self, request: pb.GetBatchPredictionRequest, context: Any) -> batch_prediction_pb2.BatchPrediction:
        async with self.read() as session:
            return wire.batch_message(await repository.get_batch(session, self.workspace, request.id))

    async def ListBatchPredictions(self, request: pb.ListBatchPredictionsRequest, context: Any) -> pb.ListBatchPredictionsResponse:
        limit, before = page_size(request.page_size), start_after(request.page_token)
        async with self.read() as session:
            found = await repository.list_batches(session, self.workspace, before=before, limit=limit + 1)
        return pb.ListBatchPredictionsResponse(
            batch_predictions=[wire.batch_message(batch) for batch in found[:limit]],
            next_page_token=page_token(found[limit - 1].id) if len(found) > limit else "",
        )

    async def CancelBatchPrediction(self, request: pb.CancelBatchPredictionRequest, context: Any) -> batch_prediction_pb2.BatchPrediction:
        async with self.unit(request) as unit:
            batch = await batches.cancel_batch(unit, workspace=self.workspace, id=request.id, now=time.time())
            unit.after_commit(self._planner.wake)
            return await unit.reply(wire.batch_message(batch))

    def _turn(self, name: str) -> asyncio.Lock:
        return self._turns.setdefault((self.workspace, name), asyncio.Lock())
