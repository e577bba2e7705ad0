"""Events out of bytes, and jobs watched over connections that break."""

import asyncio
import time

import pytest
from fake_platform import KEY, FakePlatform, event, problem

import leptonai as la
from leptonai._sse import Parser

TEXT = "\ufeff: hi\nid: 1\nevent: job\ndata: {\ndata: }\n\nretry: 250\r\nid:2\r\ndata:é\r\n\r\ndata: last\r\rdata: cut".encode()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_do_not_depend_on_where_chunks_are_cut(size: int) -> None:
    parser = Parser()
    found = [e for at in range(0, len(TEXT), size) for e in parser.feed(TEXT[at : at + size])]
    assert [(e.id, e.kind, e.data) for e in found] == [("1", "job", "{\n}"), ("2", "message", "é"), ("2", "message", "last")]
    assert parser.retry == 0.25


def test_an_endless_event_is_refused() -> None:
    parser = Parser()
    with pytest.raises(ValueError, match="16 MiB"):
        for _ in range(20):
            list(parser.feed(b"x" * (1 << 20)))


def _job(platform: FakePlatform, **fields: object) -> dict[str, object]:
    platform.jobs["job-1"] = {"id": "job-1", "state": "succeeded", "model_version": "m@1", **fields}
    return platform.jobs["job-1"]


def test_watch_resumes_after_the_last_event(client: la.Client, platform: FakePlatform) -> None:
    job = _job(platform)
    loss = [event(str(n), "metric", {"name": "loss", "epoch": n, "value": 1 / n}) for n in range(1, 4)]
    platform.script["GET /v1/training-jobs/job-1/events"] = [
        (200, [b"retry: 10\n\n", loss[0], loss[1][:20], b"<break>"], {}),
        None,
        problem(503, "unavailable", "restarting", headers={"retry-after": "0"}),
        (200, [loss[1], event("2b", "news", {}), b"event: metric\ndata: nonsense\n\n"], {}),  # ends without a last state
        (200, [loss[2], event("4", "job", job), loss[0]], {}),
    ]
    seen = [(found.kind, found.id) for found in client.training_jobs.watch("job-1")]
    assert seen == [("metric", "1"), ("metric", "2"), ("metric", "3"), ("job", "4")]
    asked = [request["headers"].get("last-event-id") for request in platform.requests]
    assert asked == [None, "1", "1", "1", "2b"]


def test_watch_takes_events_wrapped_as_in_the_rpc(client: la.Client, platform: FakePlatform) -> None:
    job = _job(platform)
    platform.events = [event("1", "job", {"event_id": "1", "job": job})]
    assert next(client.training_jobs.watch("job-1")).job.model_version == "m@1"  # type: ignore[union-attr]


def test_watch_gives_up_on_a_stream_that_ends_again_and_again(platform: FakePlatform) -> None:
    _job(platform)
    platform.events = [b"retry: 1\n\n"]
    with pytest.raises(la.ConnectionFailed, match="again and again"):
        list(la.Client(KEY, platform.url, retries=1).training_jobs.watch("job-1"))


def test_watch_of_an_unknown_job(client: la.Client) -> None:
    with pytest.raises(la.NotFound):
        list(client.training_jobs.watch("job-9"))


def test_wait_raises_what_the_job_says(client: la.Client, platform: FakePlatform) -> None:
    _job(platform, state="failed", error={"code": "loss_diverged", "detail": "the loss became NaN in epoch 3; use a lower learning rate"})
    with pytest.raises(la.JobFailed, match="lower learning rate") as caught:
        client.training_jobs.wait("job-1")
    assert caught.value.problem.code == "loss_diverged"
    _job(platform, state="cancelled")
    with pytest.raises(la.JobFailed, match="was cancelled"):
        client.training_jobs.wait("job-1")


def test_wait_ends_in_time_also_on_a_silent_stream(client: la.Client, platform: FakePlatform) -> None:
    _job(platform)
    platform.script["GET /v1/training-jobs/job-1/events"] = [lambda request: time.sleep(1)] * 3
    started = time.monotonic()
    with pytest.raises(la.Timeout):
        client.training_jobs.wait("job-1", timeout=0.2)
    assert time.monotonic() - started < 0.9


def test_wait_draws_a_bar_where_asked(client: la.Client, platform: FakePlatform, capfd: pytest.CaptureFixture[str]) -> None:
    job = _job(platform, progress={"epoch": 2, "epochs": 2, "loss": 0.25})
    platform.events = [event("1", "metric", {"name": "loss", "epoch": 2, "value": 0.25}), event("2", "job", job)]
    client.training_jobs.wait("job-1", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "epoch 2/2" in err
    assert "loss 0.25" in err


def test_the_same_from_an_event_loop(platform: FakePlatform) -> None:
    job = _job(platform)
    path = "GET /v1/training-jobs/job-1/events"
    platform.script[path] = [(200, [event("1", "log", {"text": "a"}), b"<break>"], {}), (200, [event("2", "job", job)], {})]

    async def go() -> list[str]:
        async with la.AsyncClient(KEY, platform.url) as client:
            return [found.id async for found in client.training_jobs.watch("job-1")]

    assert asyncio.run(go()) == ["1", "2"]
