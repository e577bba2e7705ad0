"""Use cases through the servicer, with the reconciler running and no worker: what is stored, what is refused, and what others hear."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import struct_pb2
from sqlalchemy import select

from lepton.common.v1 import resource_pb2
from lepton.compute.v1 import allocation_pb2
from lepton.compute.v1.events_pb2 import AllocationEnded
from lepton.data.v1 import dataset_pb2
from lepton.deployment.v1.endpoint_pb2 import Endpoint
from lepton.deployment.v1.events_pb2 import EndpointCreated, EndpointDeleted
from lepton.training.v1 import job_pb2
from lepton.training.v1 import training_service_pb2 as pb
from libs.errors import AppError, Conflict, Invalid, NotFound, QuotaExceeded, Replay, Transient
from libs.testing import as_member
from services.training.conftest import Platform, running_platform, watch
from services.training.consumers import consumers
from services.training.handlers import attempts
from services.training.handlers.attempts import Batch, Line, Metric
from services.training.reconciler import Sweep
from services.training.tables import PendingReservation, StoredFile, TrainingJob

PACKAGE = {"architecture": "linear", "signature": {"inputs": [], "outputs": []}, "preprocessing": {"words": ["w"] * 2000, "mean": [1.5]}}


async def stored_jobs(platform: Platform) -> list[TrainingJob]:
    async with platform.database.read() as session:
        return list((await session.execute(select(TrainingJob))).scalars())


async def claimed(platform: Platform, job_id: str) -> attempts.Lease:
    await platform.in_state(job_id, "starting")
    async with platform.database.unit() as unit:
        found = await attempts.claim(unit, workspace="acme", job_id=job_id, holder="w", seconds=60, now=time.time())
    assert found
    return found[0]


async def registered(platform: Platform, model: str = "m", digest: str = "sha256:" + "0" * 64) -> str:
    """A job that has succeeded without any worker."""
    job_id = (await platform.submit(output_model=model)).id
    lease = await claimed(platform, job_id)
    files = [resource_pb2.Artifact(digest=digest, size_bytes=1, path="model.json")]
    async with platform.database.unit() as unit:
        await attempts.register_model_version(unit, lease, package=PACKAGE, result={"metrics": {"accuracy": 1}}, files=files, seconds=1)
    return job_id


async def handle(platform: Platform, event: Any) -> None:
    async with platform.database.unit() as unit:
        await consumers(platform.reconciler.wake)[type(event)](unit, event)


async def test_what_a_job_shows(platform: Platform) -> None:
    job = await platform.submit(training=job_pb2.TrainingSpec(seed=2**64 - 1))
    assert (job.dataset, job.name, job.target, list(job.features)) == ("wdbc@1", "m", "label", ["a", "b", "kind"])
    assert (job.model.init, job.training.epochs, job.training.seed, job.training.test_fraction) == ("random", 20, 2**64 - 1, 0.2)
    assert (job.resources.memory_bytes, job.resources.cpu_millis, len(job.trace_id)) == (2 << 30, 1000, 32)
    granted = await platform.in_state(job.id, "starting")
    assert granted.reason.startswith("has an allocation on n1")
    with as_member():
        assert (await platform.servicer.GetTrainingJob(pb.GetTrainingJobRequest(id=job.id), None)).state == job_pb2.JOB_STATE_STARTING
    for request, method in (
        (pb.GetTrainingJobRequest(id=job.id), platform.servicer.GetTrainingJob),
        (pb.CancelTrainingJobRequest(id=job.id), platform.servicer.CancelTrainingJob),
        (pb.ListMetricsRequest(id=job.id), platform.servicer.ListMetrics),
        (pb.ListLogsRequest(id=job.id), platform.servicer.ListLogs),
    ):
        with as_member("other"), pytest.raises(NotFound):
            await method(request, None)
    with as_member("other"), pytest.raises(NotFound):
        await anext(platform.servicer.WatchTrainingJob(pb.WatchTrainingJobRequest(id=job.id), None))


def params(**values: Any) -> struct_pb2.Struct:
    struct = struct_pb2.Struct()
    struct.update(values)
    return struct


@pytest.mark.parametrize(
    ("fields", "at", "words"),
    [
        ({"target": "lable"}, "target", "did you mean 'label'"),
        ({"task": job_pb2.TASK_REGRESSION}, "target", "regression predicts numbers"),
        ({"features": ["a", "label"]}, "features[1]", "is the target"),
        ({"model": job_pb2.ModelSpec(architecture=job_pb2.ARCHITECTURE_CNN)}, "model.architecture", "pictures"),
        (
            {"model": job_pb2.ModelSpec(architecture=job_pb2.ARCHITECTURE_MLP, params=params(hiden=[1]))},
            "model.params.hiden",
            "did you mean hidden",
        ),
        ({"training": job_pb2.TrainingSpec(learning_rate=-1)}, "training.learning_rate", "-1"),
        ({"resources": resource_pb2.Resources(count=64)}, "resources.count", "the largest node has 4"),
        ({"dataset": "wdbc@"}, "dataset", "name@number"),
        ({"model": job_pb2.ModelSpec(architecture=job_pb2.ARCHITECTURE_LINEAR, init="pretrained!")}, "model.init", '"random"'),
    ],
)
async def test_a_wrong_spec_stores_and_reserves_nothing(platform: Platform, fields: dict[str, Any], at: str, words: str) -> None:
    with pytest.raises(Invalid) as refused:
        await platform.submit(**fields)
    assert refused.value.code == "invalid_spec"
    [error] = refused.value.errors
    assert error.field == at
    assert words in error.message
    assert (await stored_jobs(platform), platform.accounts.reserved, platform.compute.allocations) == ([], {}, {})


@pytest.mark.parametrize(
    ("column", "figures", "words"),
    [
        ("label", {"distinct": 1}, "one class only"),
        ("label", {"distinct": 2, "nulls": 3}, "3 missing or NaN"),
        ("label", {"distinct": 201}, "201 classes"),
    ],
)
async def test_data_that_cannot_be_learned_is_refused(platform: Platform, column: str, figures: dict[str, int], words: str) -> None:
    platform.data.figures[column] = figures
    with pytest.raises(Invalid, match=words):
        await platform.submit()


async def test_what_is_missing_is_404_and_named_among_other_errors(platform: Platform) -> None:
    with pytest.raises(NotFound, match="did you mean wdbc"):
        await platform.submit(dataset="wdbcc")
    await registered(platform, "base")
    with pytest.raises(NotFound, match="did you mean base"):
        await platform.submit(model=job_pb2.ModelSpec(architecture=job_pb2.ARCHITECTURE_LINEAR, init="bass@1"))
    with pytest.raises(Invalid) as refused:
        await platform.submit(dataset="wdbcc", training=job_pb2.TrainingSpec(learning_rate=-1))
    assert {error.field for error in refused.value.errors} == {"dataset", "training.learning_rate"}
    platform.data.state = dataset_pb2.VERSION_STATE_PROCESSING
    with pytest.raises(Invalid, match="wait until it is ready"):
        await platform.submit()


async def test_a_used_up_quota_leaves_nothing_behind(platform: Platform) -> None:
    platform.accounts.limits["concurrent_training_jobs"] = 0
    with pytest.raises(QuotaExceeded):
        await platform.submit()
    assert (await stored_jobs(platform), platform.accounts.reserved) == ([], {})
    async with platform.database.read() as session:
        assert (await session.execute(select(PendingReservation))).all() == []


async def test_the_budget_that_is_left_becomes_the_time_limit(platform: Platform) -> None:
    platform.accounts.limits["cpu_seconds"] = 101
    job = await platform.submit(resources=resource_pb2.Resources(count=2))
    assert job.training.time_limit_seconds == 50
    assert "so much is left of the plan's cpu_seconds" in (await platform.logs(job.id))[0]


async def test_a_default_time_limit_leaves_room_for_other_jobs(platform: Platform) -> None:
    platform.accounts.limits["cpu_seconds"] = 36_000
    limits = [(await platform.submit(output_model=f"m{n}")).training.time_limit_seconds for n in range(3)]
    assert limits == [9000, 6750, 5062]
    assert (await platform.submit(training=job_pb2.TrainingSpec(time_limit_seconds=3600))).training.time_limit_seconds == 3600


async def test_a_reservation_of_a_job_that_never_came_is_given_back(platform: Platform) -> None:
    platform.accounts.reserved = {("training-jobs/acme/job-x", "cpu_seconds"): 5}
    async with platform.database.unit() as unit:
        await unit.insert(PendingReservation(job_id="job-x", workspace="acme", create_time=time.time() - 1000))
    platform.reconciler.wake()

    async def released() -> bool:
        return not platform.accounts.reserved

    await platform.until(released)


async def test_a_job_whose_commit_was_not_heard_of_keeps_its_quota(platform: Platform) -> None:
    def lose_the_answer() -> None:
        raise Transient("the connection was lost")

    platform.database.on_emit(lose_the_answer)
    with pytest.raises(Transient):
        await platform.submit(key="k")
    (job,) = await stored_jobs(platform)
    assert {reservation for reservation, _ in platform.accounts.reserved} == {f"training-jobs/acme/{job.id}"}
    with pytest.raises(Replay):
        await platform.submit(key="k")


async def test_an_idempotency_key_makes_one_job(platform: Platform) -> None:
    first = await platform.submit(key="k")
    with pytest.raises(Replay) as replay:
        await platform.submit(key="k")
    assert job_pb2.TrainingJob.FromString(replay.value.response).id == first.id
    answers = await asyncio.gather(*(platform.submit(key="k2") for _ in range(3)), return_exceptions=True)
    assert sorted(type(answer).__name__ for answer in answers) == ["Replay", "Replay", "TrainingJob"]
    assert len(await stored_jobs(platform)) == 2
    assert len({reservation for reservation, _ in platform.accounts.reserved}) == 2


async def test_a_job_that_compute_refuses_fails_in_its_words(platform: Platform) -> None:
    platform.compute.error = Invalid("no node could ever hold it")
    job = await platform.ended((await platform.submit()).id)
    assert (job.state, job.error and job.error["detail"]) == ("failed", "no node could ever hold it")


async def test_a_job_that_waits_for_room_is_not_asked_about_for_others(platform: Platform) -> None:
    platform.compute.room = 0
    ids = [(await platform.submit(output_model=f"m{number}")).id for number in range(4)]

    async def all_wait() -> bool:
        return len(platform.compute.asked) >= 4 and all([(await platform.job(id)).allocation_id for id in ids])

    await platform.until(all_wait)
    for _ in range(3):
        platform.reconciler.wake()
        await platform.reconciler.step()
    assert len(platform.compute.asked) == 4
    platform.compute.room = 1
    platform.reconciler.wake(ids[0])
    await platform.in_state(ids[0], "starting")
    assert len(platform.compute.asked) == 5


async def test_a_job_that_waits_is_looked_after_where_no_event_comes(platform: Platform) -> None:
    platform.compute.room = 0
    kept, granted, lost = [(await platform.submit(output_model=f"m{number}")).id for number in range(3)]

    async def all_wait() -> bool:
        return all([(await platform.job(id)).allocation_id for id in (kept, granted, lost)])

    await platform.until(all_wait)
    asked = len(platform.compute.asked)
    platform.compute.room = 1
    platform.compute.allocations[(await platform.job(granted)).allocation_id].state = allocation_pb2.ALLOCATION_STATE_GRANTED
    del platform.compute.allocations[(await platform.job(lost)).allocation_id]
    await platform.reconciler.look_after_waiting()
    await platform.in_state(granted, "starting")

    async def waits_anew() -> bool:
        return (await platform.job(lost)).allocation_id in platform.compute.allocations

    await platform.until(waits_anew)
    assert len(platform.compute.asked) == asked + 2
    platform.compute.allocations[(await platform.job(kept)).allocation_id].reason = "waits for 1 core: others are before it"
    await platform.reconciler.look_after_waiting()
    await platform.reconciler.step()
    assert len(platform.compute.asked) == asked + 3


async def test_compute_may_be_away(platform: Platform) -> None:
    platform.compute.error = Transient("compute is away")
    job_id = (await platform.submit()).id
    await asyncio.sleep(0.3)
    assert (await platform.job(job_id)).state == "queued"
    platform.compute.error = None
    platform.reconciler.wake()
    await platform.in_state(job_id, "starting")


async def test_a_queued_job_is_cancelled_at_once_and_leaves_the_queue(platform: Platform) -> None:
    platform.compute.room = 0
    job_id = (await platform.submit()).id

    async def asked() -> bool:
        return bool((await platform.job(job_id)).allocation_id)

    await platform.until(asked)
    with as_member():
        cancelled = await platform.servicer.CancelTrainingJob(pb.CancelTrainingJobRequest(id=job_id), None)
    assert cancelled.state == job_pb2.JOB_STATE_CANCELLED

    async def left() -> bool:
        return next(iter(platform.compute.allocations.values())).state == allocation_pb2.ALLOCATION_STATE_RELEASED

    await platform.until(left)


async def test_an_allocation_that_expired_before_its_use_is_asked_for_again(platform: Platform) -> None:
    job_id = (await platform.submit()).id
    job = await platform.in_state(job_id, "starting")
    allocation = platform.compute.allocations[job.allocation_id]
    allocation.state = allocation_pb2.ALLOCATION_STATE_EXPIRED
    await handle(platform, AllocationEnded(allocation=allocation))

    async def another() -> bool:
        now = await platform.job(job_id)
        return now.state == "starting" and now.allocation_id != allocation.id

    await platform.until(another)
    assert (await platform.job(job_id)).attempts == 0


async def test_pages_of_jobs_metrics_and_logs(platform: Platform) -> None:
    ids = [(await platform.submit(output_model=f"m{n}")).id for n in range(5)]
    lease = await claimed(platform, ids[0])
    entries: list[Metric | Line] = [Metric(name, step, 1, step / 2, 1.0) for step in range(1, 6) for name in ("loss", "accuracy")]
    async with platform.database.unit() as unit:
        await attempts.record(unit, lease, Batch([*entries, Line("stdout", "hi", 1.0)]), expires=time.time() + 60, seconds=1)
    with as_member():
        listed: list[str] = []
        request = pb.ListTrainingJobsRequest(page_size=2)
        while True:
            page = await platform.servicer.ListTrainingJobs(request, None)
            listed += [job.id for job in page.training_jobs]
            request.page_token = page.next_page_token
            if not request.page_token:
                break
        assert listed == ids[::-1]
        only = await platform.servicer.ListTrainingJobs(pb.ListTrainingJobsRequest(state=job_pb2.JOB_STATE_FAILED), None)
        assert list(only.training_jobs) == []
        first = await platform.servicer.ListMetrics(pb.ListMetricsRequest(id=ids[0], name="loss", page_size=3), None)
        rest = await platform.servicer.ListMetrics(pb.ListMetricsRequest(id=ids[0], name="loss", page_token=first.next_page_token), None)
        assert [point.step for point in [*first.metrics, *rest.metrics]] == [1, 2, 3, 4, 5]
        with pytest.raises(Invalid):
            await platform.servicer.ListLogs(pb.ListLogsRequest(id=ids[0], page_token="bm9uZQ"), None)
    assert await platform.logs(ids[0]) == ["hi"]
    with as_member("other"):
        assert not (await platform.servicer.ListTrainingJobs(pb.ListTrainingJobsRequest(), None)).training_jobs


async def test_a_watcher_hears_soon_and_resumes_anywhere(platform: Platform) -> None:
    job_id = (await platform.submit()).id
    lease = await claimed(platform, job_id)
    heard: list[tuple[float, Any]] = []

    async def listen() -> None:
        with as_member():
            async for event in platform.servicer.WatchTrainingJob(pb.WatchTrainingJobRequest(id=job_id), None):
                heard.append((time.monotonic(), event))

    listening = asyncio.create_task(listen())
    await asyncio.sleep(0.2)
    # As another process would write it.
    async with platform.database.unit() as unit:
        batch = Batch([Metric("loss", 1, 1, 0.5, 1.0)], {"epoch": 1, "epochs": 2, "step": 1, "loss": 0.5}, "", time.time())
        await attempts.record(unit, lease, batch, expires=time.time() + 60, seconds=1)
    written = time.monotonic()
    await asyncio.sleep(0.3)
    later = [(at - written, event) for at, event in heard if at > written]
    assert {event.WhichOneof("event") for _, event in later} == {"job", "metric"}
    assert later[0][0] < 0.2
    assert later[-1][1].job.progress.loss == 0.5
    async with platform.database.unit() as unit:
        await attempts.end_job(unit, lease, {"code": "internal", "detail": "over"}, seconds=1)
    await asyncio.wait_for(listening, 2)
    stored = await watch(platform, job_id)
    assert stored[-1].job.state == job_pb2.JOB_STATE_FAILED
    for event in stored:
        assert await watch(platform, job_id, event.event_id) == [each for each in stored if int(each.event_id) > int(event.event_id)]
    with pytest.raises(Invalid):
        await watch(platform, job_id, "yesterday")


async def test_models_and_their_versions(platform: Platform) -> None:
    await registered(platform)
    await registered(platform)
    with as_member():
        service = platform.servicer
        newest = await service.GetModelVersion(pb.GetModelVersionRequest(name="m"), None)
        assert (newest.number, newest.metrics["accuracy"]) == (2, 1.0)
        assert newest.preprocessing["words"] == {"length": 2000, "in": "model.json"}
        assert (await service.GetModelVersion(pb.GetModelVersionRequest(name="m", number=1), None)).number == 1
        with pytest.raises(NotFound, match="its newest is m@2"):
            await service.GetModelVersion(pb.GetModelVersionRequest(name="m", number=3), None)
        with pytest.raises(NotFound, match="did you mean m"):
            await service.GetModel(pb.GetModelRequest(name="mm"), None)
        page = await service.ListModelVersions(pb.ListModelVersionsRequest(name="m", page_size=1), None)
        rest = await service.ListModelVersions(pb.ListModelVersionsRequest(name="m", page_token=page.next_page_token), None)
        assert [version.number for version in [*page.model_versions, *rest.model_versions]] == [2, 1]
        assert [model.name for model in (await service.ListModels(pb.ListModelsRequest(), None)).models] == ["m"]
    with as_member("other"), pytest.raises(NotFound):
        await platform.servicer.GetModel(pb.GetModelRequest(name="m"), None)


@pytest.mark.parametrize("serving", [{}, {"e": "other@3"}], ids=["deleted", "serves another model"])
async def test_a_model_whose_endpoint_has_left_it_can_go_before_the_event_comes(platform: Platform, serving: dict[str, str]) -> None:
    await registered(platform)
    await handle(platform, EndpointCreated(endpoint=Endpoint(name="e", workspace="acme", model="m@1")))
    platform.deployment.away = True
    with as_member(), pytest.raises(Conflict, match="served by e"):
        await platform.servicer.DeleteModel(pb.DeleteModelRequest(name="m"), None)
    platform.deployment.away, platform.deployment.serving = False, serving
    with as_member():
        await platform.servicer.DeleteModel(pb.DeleteModelRequest(name="m"), None)


async def test_a_served_model_stays_and_a_number_is_never_given_twice(platform: Platform) -> None:
    await registered(platform)
    platform.deployment.serving = {"e": "m@1"}
    await handle(platform, EndpointCreated(endpoint=Endpoint(name="e", workspace="acme", model="m@1")))
    with as_member(), pytest.raises(Conflict, match="served by e"):
        await platform.servicer.DeleteModel(pb.DeleteModelRequest(name="m"), None)
    await handle(platform, EndpointDeleted(workspace="acme", endpoint="e"))
    with as_member():
        await platform.servicer.DeleteModel(pb.DeleteModelRequest(name="m"), None)
        with pytest.raises(NotFound):
            await platform.servicer.GetModelVersion(pb.GetModelVersionRequest(name="m", number=1), None)
    assert (await platform.job(await registered(platform))).model_version == "m@2"


async def bytes_of(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def test_bytes_go_when_nothing_names_them(platform: Platform) -> None:
    store = platform.stores.models
    kept, orphan = await store.put(bytes_of(b"kept")), await store.put(bytes_of(b"orphan"))
    await registered(platform, digest=kept.digest)
    sweep = Sweep(platform.database, {"models": store}, idle_seconds=0.0)
    await sweep.sweep()
    assert [digest async for digest, _ in store.list()] == [kept.digest]
    assert orphan.digest != kept.digest
    with as_member():
        await platform.servicer.DeleteModel(pb.DeleteModelRequest(name="m"), None)
    await sweep.sweep()
    assert [digest async for digest, _ in store.list()] == []
    async with platform.database.read() as session:
        assert (await session.execute(select(StoredFile))).all() == []


async def test_a_job_whose_worker_is_lost_again_and_again_ends(tmp_path: Path) -> None:
    async with running_platform(tmp_path) as platform:
        job_id = (await platform.submit()).id
        for _ in range(11):
            await platform.in_state(job_id, "starting")
            async with platform.database.unit() as unit:
                assert await attempts.claim(unit, workspace="acme", job_id=job_id, holder="w", seconds=-1, now=time.time())
            platform.reconciler.wake()

            async def buried() -> bool:
                return not (await platform.job(job_id)).lease_holder

            await platform.until(buried)
        job = await platform.ended(job_id)
        assert job.error and job.error["code"] == "process_failed"
        assert isinstance(AppError.from_dict(job.error), AppError)
