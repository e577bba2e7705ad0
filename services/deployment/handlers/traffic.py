"""What gateways report of endpoints becomes rows that whoever plans goes by."""

from collections.abc import Sequence

from lepton.deployment.v1.deployment_service_pb2 import TrafficReport
from libs.db import Unit
from services.deployment import repository
from services.deployment.tables import Traffic


async def report_traffic(unit: Unit, *, gateway: str, reports: Sequence[TrafficReport], now: float) -> None:
    """The load of now takes the place of what the gateway said before; requests are added up. An endpoint that is gone is passed over."""
    ids = await repository.endpoint_ids(unit.session, {(report.workspace, report.endpoint) for report in reports})
    known = {(ids[key], report.revision): report for report in reports if (key := (report.workspace, report.endpoint)) in ids}
    if not known:
        return
    rows = [
        Traffic(
            gateway=gateway,
            endpoint_id=id,
            revision=number,
            in_flight=report.in_flight,
            waiting=report.waiting,
            p95_seconds=report.p95_seconds,
            time=now,
        )
        for (id, number), report in known.items()
    ]
    await repository.replace_traffic(unit.session, rows)
    counts = [
        {
            "of_endpoint": id,
            "of_number": number,
            "more_requests": report.requests,
            "more_errors": min(report.errors, report.requests),
            "more_seconds": report.seconds_sum,
            "more_compared": report.shadow_compared,
            "more_differing": report.shadow_differing,
            "seen": bool(report.requests or report.in_flight or report.waiting),
        }
        for (id, number), report in known.items()
    ]
    await repository.add_requests(unit.session, counts, now=now)
