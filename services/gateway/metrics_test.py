"""Requests are counted by the route's template, whatever a client makes up."""

from libs.testing.metrics import metrics_read
from services.gateway.conftest import World


async def test_requests_are_counted_by_route_method_and_code(world: World) -> None:
    with metrics_read() as read:
        for path in ("/v1/datasets/wdbc", "/v1/datasets/wdbc", "/v1/datasets/other", "/readyz", "/nowhere/12345", "/nowhere/67890"):
            await world.client.get(path)
        await world.client.request("PROPFIND", "/v1/datasets/wdbc")
        requests, durations, busy = (
            read(f"lepton_http_{name}") for name in ("requests_total", "request_duration_seconds", "requests_in_flight")
        )
    assert set(requests) == {
        ("/v1/datasets/{name}", "GET", "200"),
        ("/v1/datasets/{name}", "GET", "404"),
        ("/readyz", "GET", "200"),
        ("none", "GET", "404"),
        ("none", "other", "405"),
    }
    assert requests["/v1/datasets/{name}", "GET", "200"] == 2
    assert requests["none", "GET", "404"] == 2
    assert durations == {("/v1/datasets/{name}",): 3, ("/readyz",): 1, ("none",): 3}
    assert busy == {(): 0}


async def test_rows_of_predictions_are_counted(world: World) -> None:
    await world.add_replica()
    with metrics_read() as read:
        answer = await world.client.post("/v1/endpoints/wdbc/predict", json={"instances": [{"x": 1}, {"x": 2}]})
        assert answer.status_code == 200, answer.text
        assert read("lepton_predictions_total") == {(): 2}
        assert read("lepton_prediction_duration_seconds") == {(): 1}


async def test_a_request_that_is_refused_at_the_door_names_no_route(world: World) -> None:
    with metrics_read() as read:
        await world.client.get("/v1/datasets/wdbc", headers={"authorization": "Bearer wrong-key"})
        assert read("lepton_http_requests_total") == {("none", "GET", "401"): 1}
