from __future__ import annotations

import re

import pytest
import structlog
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from prometheus_client.parser import text_string_to_metric_families

from coordinator.api.request_watch import RequestWatch
from fl_protocol.telemetry.coordinator_metrics import COORDINATOR_METRICS
from fl_protocol.telemetry.meter import Meter

SEEN: list[dict[str, object]] = []


@pytest.fixture
def meter() -> Meter:
    return Meter(COORDINATOR_METRICS)


@pytest.fixture
def client(meter: Meter) -> AsyncClient:
    app = FastAPI()

    @app.get("/runs/{run_id}")
    def show(run_id: str) -> dict[str, str]:
        SEEN.append(structlog.contextvars.get_contextvars())
        return {"run_id": run_id}

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("inside")

    watched = RequestWatch(app, meter=meter, routes={show: "/runs/{run_id}", broken: "/broken"})
    return AsyncClient(transport=ASGITransport(app=watched, raise_app_exceptions=False), base_url="http://c")


def requests_of(meter: Meter) -> dict[tuple[str, str, str], float]:
    return {
        (sample.labels["method"], sample.labels["route"], sample.labels["status"]): sample.value
        for family in text_string_to_metric_families(meter.exposition().decode())
        for sample in family.samples
        if sample.name == "wardround_coordinator_rest_requests_total"
    }


async def test_answer_and_log_carry_the_callers_request_id(client: AsyncClient) -> None:
    answer = await client.get("/runs/run-7", headers={"X-Request-ID": "ticket-4711"})
    assert answer.headers["X-Request-ID"] == "ticket-4711"
    assert SEEN[-1]["request_id"] == "ticket-4711"


@pytest.mark.parametrize("said", ["", "x" * 65, "a b", 'in"jected', "Ã¤"])
async def test_request_id_that_is_not_plain_is_replaced(client: AsyncClient, said: str) -> None:
    answer = await client.get("/runs/run-7", headers={"X-Request-ID": said.encode()})
    assert re.fullmatch(r"[0-9a-f]{16}", answer.headers["X-Request-ID"])
    assert SEEN[-1]["request_id"] == answer.headers["X-Request-ID"]


async def test_requests_are_counted_by_route_and_not_by_what_was_asked_for(client: AsyncClient, meter: Meter) -> None:
    for path in ("/runs/run-7", "/runs/run-8", "/nothing/here", "/broken"):
        await client.get(path)
    await client.request("BREW", "/runs/run-7")
    assert requests_of(meter) == {
        ("GET", "/runs/{run_id}", "200"): 2.0,
        ("GET", "unmatched", "404"): 1.0,
        ("GET", "/broken", "500"): 1.0,
        ("other", "/runs/{run_id}", "405"): 1.0,
    }
