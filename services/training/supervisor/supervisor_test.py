"""Attempts with played engines through the real launcher: whatever they do, the job ends once and in words."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from lepton.training.v1 import job_pb2, training_service_pb2
from libs.db.infrastructure import outbox
from libs.errors import Transient
from libs.launcher import signature
from libs.testing import as_member
from services.training import repository
from services.training.conftest import Platform, running_platform, watch
from services.training.handlers import attempts
from services.training.tables import Checkpoint, ModelVersion, StoredFile

Engine = Callable[[str], Callable[[str], list[str]]]


async def rows(platform: Platform, table: Any) -> list[Any]:
    async with platform.database.read() as session:
        return list((await session.execute(select(table))).scalars())


async def emitted(platform: Platform) -> list[str]:
    async with platform.database.read() as session:
        return [row.headers["ce_type"].rpartition(".")[2] for row in await session.execute(select(outbox).order_by(outbox.c.position))]


async def cancel(platform: Platform, job_id: str) -> job_pb2.TrainingJob:
    with as_member():
        return await platform.servicer.CancelTrainingJob(training_service_pb2.CancelTrainingJobRequest(id=job_id), None)


async def test_a_run_becomes_a_model_version(platform: Platform, engine: Engine) -> None:
    await platform.worker(command=engine("for e in (1, 2, 3): step(e); checkpoint(e)\nprint('hello'); finish()"))
    submitted = await platform.submit()
    assert submitted.state == job_pb2.JOB_STATE_QUEUED
    events = await watch(platform, submitted.id)
    job = await platform.job(submitted.id)
    assert (job.state, job.model_version, job.metrics, job.attempts) == ("succeeded", "m@1", {"accuracy": 0.9}, 1)
    assert [point.value for point in await platform.metrics(job.id)] == [1.0, 0.5, pytest.approx(1 / 3)]
    assert "hello" in await platform.logs(job.id)
    states = [event.job.state for event in events if event.WhichOneof("event") == "job"]
    assert states == sorted(states)
    assert states[-1] == job_pb2.JOB_STATE_SUCCEEDED
    assert await emitted(platform) == ["TrainingJobCreated", "TrainingJobStarted", "ModelVersionRegistered", "TrainingJobEnded"]
    with as_member():
        version = await platform.servicer.GetModelVersion(training_service_pb2.GetModelVersionRequest(name="m"), None)
    assert [file.path for file in version.files] == ["model.json", "weights.safetensors"]
    assert (version.training_job, version.dataset, version.training_rows, version.trace_id) == (job.id, "wdbc@1", 160, job.trace_id)
    assert await rows(platform, Checkpoint) == []
    await platform.until(lambda: nothing_held(platform))
    assert left_in(platform.tools.settings.work_dir) == []
    again = await watch(platform, job.id, after=events[3].event_id)
    kept = [event.event_id for event in events if event.HasField("log") or event.HasField("metric")]
    resumed = [event.event_id for event in again if event.HasField("log") or event.HasField("metric")]
    assert resumed == [number for number in kept if int(number) > int(events[3].event_id)]


def left_in(folder: str) -> list[Path]:
    return list(Path(folder).glob("*/*"))


async def nothing_held(platform: Platform) -> bool:
    return not platform.compute.held


async def test_a_crash_goes_on_from_the_last_checkpoint(platform: Platform, engine: Engine) -> None:
    program = """
    start = resumed()
    for e in range(start + 1, 4):
        step(e); checkpoint(e)
        if e == 2 and not start:
            os.kill(os.getpid(), signal.SIGKILL)
    finish()
    """
    await platform.worker(command=engine(program))
    job = await platform.ended((await platform.submit()).id)
    assert (job.state, job.attempts) == ("succeeded", 2)
    assert [point.epoch for point in await platform.metrics(job.id)] == [1, 2, 3]
    assert any("signal 9" in line for line in await platform.logs(job.id))
    assert len(await rows(platform, ModelVersion)) == 1
    assert (await emitted(platform)).count("TrainingJobStarted") == 2


async def test_a_crash_again_and_again_fails_in_words(tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.training.domain.retry.FIRST_PAUSE_SECONDS", 0.01)
    async with running_platform(tmp_path) as platform:
        await platform.worker(command=engine("raise SystemExit('no such column')"))
        job = await platform.ended((await platform.submit()).id)
        assert (job.state, job.attempts) == ("failed", 4)
        assert job.error and job.error["code"] == "process_failed"
        assert "exit code 1: no such column" in job.error["detail"]
        await platform.until(lambda: nothing_held(platform))
        assert (await emitted(platform)).count("TrainingJobEnded") == 1


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [
        ("say('error', code='loss_diverged', detail='lower the learning rate', errors=[]); sys.exit(3)", "loss_diverged", "lower"),
        ("x = bytearray(200 << 20); x[::4096] = b'x' * len(x[::4096]); time.sleep(30)", "out_of_memory", "memory_bytes"),
        ("step(); time.sleep(30)", "time_limit", "1 s were over in epoch 1 of 3; raise training.time_limit_seconds"),
    ],
)
async def test_what_another_attempt_would_not_change_ends_the_job(
    platform: Platform, engine: Engine, program: str, code: str, words: str
) -> None:
    await platform.worker(command=engine(program))
    fields: dict[str, Any] = {"resources": {"memory_bytes": 100 << 20}} if code == "out_of_memory" else {}
    if code == "time_limit":
        fields["training"] = job_pb2.TrainingSpec(time_limit_seconds=1)
    job = await platform.ended((await platform.submit(**fields)).id)
    assert (job.state, job.attempts) == ("failed", 1)
    assert job.error and job.error["code"] == code
    assert words in job.error["detail"]


async def test_a_hang_is_ended_and_tried_once_more(tmp_path: Path, engine: Engine) -> None:
    async with running_platform(tmp_path, hang_seconds=0.5, stop_grace_seconds=0.2) as platform:
        await platform.worker(command=engine("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nstep()\nwhile True: time.sleep(1)"))
        job = await platform.ended((await platform.submit()).id)
        assert (job.state, job.attempts) == ("failed", 2)
        assert job.error and job.error["code"] == "process_hung"


async def test_a_cancel_takes_effect_within_two_seconds(platform: Platform, engine: Engine) -> None:
    await platform.worker(
        command=engine("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsay('log', text=str(os.getpid())); step(); time.sleep(60)")
    )
    job_id = (await platform.submit()).id
    await platform.in_state(job_id, "running")
    pid = int(next(line for line in await platform.logs(job_id) if line.isdigit()))
    started = time.monotonic()
    assert (await cancel(platform, job_id)).state == job_pb2.JOB_STATE_CANCELLING
    job = await platform.ended(job_id)
    assert (job.state, job.error) == ("cancelled", None)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert time.monotonic() - started < 2
    assert (await cancel(platform, job_id)).state == job_pb2.JOB_STATE_CANCELLED
    assert (await emitted(platform))[-1] == "TrainingJobEnded"
    await platform.until(lambda: nothing_held(platform))


async def test_garbage_harms_nothing(platform: Platform, engine: Engine) -> None:
    program = r"""
    out = open(folder / "events.jsonl", "ab", buffering=0)
    for junk in (b"\n", b"{", b"null\n", b"[]\n", b"3\n", b'{"type": "metric"}\n',
                 b'{"type": "metric", "name": "m", "step": -1, "epoch": 0, "value": 1}\n',
                 b'{"type": "metric", "name": "m", "step": 1, "epoch": 0, "value": NaN}\n', b"\xff\xfe\x00\n", b'{"type": [], "x": 1}\n',
                 b'{"type": "progress", "epoch": "1", "epochs": 2, "step": 3}\n', b'{"type": "checkpoint", "epoch": "../..", "step": 1}\n',
                 b'{"type": "metric", "name": "m", "step": 1e400, "epoch": 0, "value": 1}\n', b'{"type": "span"}\n',
                 b'{"type": "log", "text": "\\ud800"}\n', b'{"type": "log", "text": "' + b"y" * 5000 + b'"}\n'):
        out.write(junk)
    out.write(b"z" * (33 << 20) + b"\n")
    say("metric", name="loss", step=1, epoch=1, value=None)
    sys.stdout.write("a" * 200_000 + "\nb\r" * 3 + "\nfin"); sys.stdout.flush()
    say("checkpoint", epoch=7, step=70, path="../../etc")
    for trace in ("0" * 32, spec["traceparent"].split("-")[1]):
        say("span", name="x", trace_id=trace, span_id="1" * 16, parent_id="2" * 16, start_ns=1, end_ns=2, attributes={})
    step(); finish()
    """
    await platform.worker(command=engine(program))
    job = await platform.ended((await platform.submit()).id)
    assert (job.state, job.attempts) == ("succeeded", 1)
    lines = await platform.logs(job.id)
    assert max(len(line) for line in lines) <= 2001
    assert "fin" in lines
    assert [point.name for point in await platform.metrics(job.id)] == ["loss"]
    assert len(platform.spans) == 1


async def test_logs_are_bounded(tmp_path: Path, engine: Engine) -> None:
    async with running_platform(tmp_path, max_log_lines=10) as platform:
        await platform.worker(command=engine("for n in range(1000): print(n)\nfinish()"))
        lines = await platform.logs((await platform.ended((await platform.submit()).id)).id)
        assert lines[-1] == "more lines are not kept"
        assert len(lines) == 10


async def test_an_exit_without_a_result_is_a_crash(platform: Platform, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.training.domain.retry.MAX_CRASHES", 0)
    await platform.worker(command=engine("say('result', metrics={}); sys.exit(0)"))
    job = await platform.ended((await platform.submit()).id)
    assert job.error and "no model package" in job.error["detail"]


async def test_bytes_that_no_text_holds_break_nothing(platform: Platform, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.training.domain.retry.MAX_CRASHES", 0)
    nul = "\\0"
    told = f"say('metric', name='a{nul}b', step=1, epoch=1, value=1.0)\nsay('progress', phase='p{nul}', epoch=1, epochs=1, step=1)"
    await platform.worker(command=engine(f"{told}\nprint('l{nul}')\nraise SystemExit('no {nul} column')"))
    job = await platform.ended((await platform.submit()).id)
    assert job.state == "failed" and "exit code 1: no \ufffd column" in job.reason
    assert len(await platform.metrics(job.id)) == 1


async def test_a_lost_allocation_stops_the_process_and_is_asked_for_again(platform: Platform, engine: Engine) -> None:
    await platform.worker(command=engine("step()\nif spec['resume'] is None: checkpoint(1); time.sleep(60)\nfinish()"))
    job_id = (await platform.submit()).id
    await platform.until(lambda: has_checkpoint(platform))
    next(iter(platform.compute.allocations.values())).state = 4
    job = await platform.ended(job_id)
    assert (job.state, job.attempts, job.crashes) == ("succeeded", 2, 0)
    assert [a.holder[-1] for a in platform.compute.allocations.values()] == ["1", "2"]


async def has_checkpoint(platform: Platform) -> bool:
    return bool(await rows(platform, Checkpoint))


async def test_checkpoints_are_few_and_named_after_they_are_kept(
    platform: Platform, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.training.supervisor.attempt.CHECKPOINT_SECONDS", 0.0)
    await platform.worker(command=engine("for e in range(1, 6): step(e); checkpoint(e); time.sleep(0.3)\ntime.sleep(60)"))
    job_id = (await platform.submit()).id

    async def fifth() -> bool:
        return any(row.epoch == 5 for row in await rows(platform, Checkpoint))

    await platform.until(fifth)
    assert len(await rows(platform, Checkpoint)) == 2
    for file in await rows(platform, StoredFile):
        assert await platform.stores.checkpoints.stat(file.digest) == file.size
    await cancel(platform, job_id)
    await platform.ended(job_id)
    assert await rows(platform, Checkpoint) == await rows(platform, StoredFile) == []


async def test_a_worker_that_stops_hands_its_jobs_to_the_next(platform: Platform, engine: Engine) -> None:
    program = "start = resumed()\nstep(start + 1)\nif not start: checkpoint(1); time.sleep(60)\nfinish()"
    first = await platform.worker(command=engine(program))
    job_id = (await platform.submit()).id
    await platform.in_state(job_id, "running")
    await first.stop()
    assert (await platform.job(job_id)).state == "starting"
    await platform.worker(command=engine(program))
    job = await platform.ended(job_id)
    assert (job.state, job.attempts, job.losses) == ("succeeded", 2, 0)


async def test_a_worker_that_dies_is_noticed_and_fenced_off(platform: Platform, engine: Engine) -> None:
    first = await platform.worker(command=engine("step(); time.sleep(60)"))
    job_id = (await platform.submit()).id
    await platform.in_state(job_id, "running")
    attempt = first._running[job_id].attempt
    stale = attempt.lease
    # As if it had been stopped with SIGSTOP: it renews nothing, but lives.
    attempt._write = asyncio.Event().wait  # type: ignore[method-assign, assignment]
    await first._scan.stop()
    first._stopping = True
    await platform.worker(command=engine("step(2); finish()"))
    job = await platform.ended(job_id)
    assert (job.state, job.attempts, job.losses) == ("succeeded", 2, 1)
    for write in (
        lambda unit: attempts.record(unit, stale, attempts.Batch(), expires=time.time() + 9, seconds=1),
        lambda unit: attempts.save_checkpoint(unit, stale, epoch=9, step=9, files=[]),
        lambda unit: attempts.register_model_version(unit, stale, package={}, result={}, files=[], seconds=1),
        lambda unit: attempts.end_job(unit, stale, {"code": "internal", "detail": ""}, seconds=1),
    ):
        with pytest.raises(attempts.LeaseLost):
            async with platform.database.unit() as unit:
                await write(unit)
    assert len(await rows(platform, ModelVersion)) == 1
    assert (await emitted(platform)).count("TrainingJobEnded") == 1


async def test_an_outage_of_the_database_loses_nothing_of_a_run(
    platform: Platform, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await platform.worker(command=engine("for e in range(1, 4): step(e); time.sleep(0.4)\nfinish()"))
    job_id = (await platform.submit()).id
    await platform.in_state(job_id, "running")
    original, failures = attempts.record, 2

    async def sometimes(*args: Any, **kwargs: Any) -> Any:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise Transient("the database is away")
        return await original(*args, **kwargs)

    monkeypatch.setattr(attempts, "record", sometimes)
    assert (await platform.ended(job_id)).state == "succeeded"
    assert [point.epoch for point in await platform.metrics(job_id)] == [1, 2, 3]


async def test_the_run_sees_no_settings_of_the_platform(platform: Platform, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_TRAINING_IDENTITY__PRIVATE_KEY", "secret")
    await platform.worker(command=engine("print(json.dumps(dict(os.environ))); finish()"))
    job = await platform.ended((await platform.submit()).id)
    assert not any("secret" in line or "LEPTON" in line for line in await platform.logs(job.id))


async def test_jobs_wait_for_room_and_say_so(platform: Platform, engine: Engine) -> None:
    platform.compute.room = 1
    await platform.worker(command=engine("step(); time.sleep(0.5); finish()"))
    ids = [(await platform.submit(output_model=f"m{n}")).id for n in range(3)]

    async def waits() -> bool:
        return (await platform.job(ids[2])).reason == "waits for 1 core: all are in use"

    await platform.until(waits)
    for job_id in ids:
        assert (await platform.ended(job_id)).state == "succeeded"
    async with platform.database.read() as session:
        assert await repository.model_names(session, "acme") == ["m0", "m1", "m2"]


async def test_a_lost_message_only_delays(platform: Platform, engine: Engine) -> None:
    platform.hint = lambda workspace, job_id: None  # type: ignore[method-assign]
    await platform.worker(command=engine("step(); finish()"))
    assert (await platform.ended((await platform.submit()).id)).state == "succeeded"


async def test_a_worker_takes_what_its_node_was_given(platform: Platform, engine: Engine) -> None:
    settings = platform.tools.settings
    await platform.worker(settings=settings.model_copy(update={"node": "n2"}))
    job_id = (await platform.submit()).id
    await platform.in_state(job_id, "starting")
    await asyncio.sleep(0.3)
    assert (await platform.job(job_id)).attempts == 0
    await platform.worker(settings=settings.model_copy(update={"node": "n1"}), command=engine("step(); finish()"))
    assert (await platform.ended(job_id)).state == "succeeded"


async def test_leases_of_a_dead_worker_on_this_machine_end_with_the_next_start(tmp_path: Path, engine: Engine) -> None:
    async with running_platform(tmp_path) as platform:
        job_id = (await platform.submit()).id
        await platform.in_state(job_id, "starting")
        async with platform.database.unit() as unit:
            holder = f"{signature().split('/')[0]}/4194399:1:x/x"
            held = await attempts.claim(unit, workspace="acme", job_id=job_id, holder=holder, seconds=600, now=time.time())
        assert held
        await platform.worker(command=engine("step(); finish()"))
        job = await platform.ended(job_id)
        assert (job.state, job.attempts, job.losses) == ("succeeded", 2, 1)


async def test_what_was_told_up_to_a_checkpoint_is_written_before_it_is_named(
    platform: Platform, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.training.supervisor.attempt.WRITE_SECONDS", 3600.0)
    await platform.worker(command=engine("step(1); time.sleep(0.3)\nfor e in (2, 3): step(e)\ncheckpoint(3); time.sleep(60)"))
    job_id = (await platform.submit()).id
    await platform.until(lambda: has_checkpoint(platform))
    assert [point.epoch for point in await platform.metrics(job_id)] == [1, 2, 3]
