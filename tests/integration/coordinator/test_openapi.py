# ruff: noqa: ANN001, ANN201 # the types of fixtures live in conftest.py, which test folders cannot import
"""Requests made from the OpenAPI document, valid and not: none is an internal error, and every answer is documented."""

from __future__ import annotations

import pytest
import requests
from hypothesis import HealthCheck, Phase, settings

from coordinator.api.main import bare_app

schemathesis = pytest.importorskip("schemathesis", reason="a part of the dev extra: make setup")
from schemathesis.checks import not_a_server_error  # noqa: E402 # after the check that it is installed
from schemathesis.specs.openapi.checks import (  # noqa: E402 # the same
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
DOCUMENT = bare_app().openapi()
schema = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def tried(coordinator, tmp_path_factory):
    """A coordinator of its own: what is tried here stays in its tables."""
    many = {"REQUESTS_BURST": "1000000", "FAILURES_BURST": "1000000"}
    made = type(coordinator)(
        directory=tmp_path_factory.mktemp("tried") / "state",
        environment={f"WARDROUND_RATE_LIMITS__{name}": value for name, value in many.items()},
    )
    made.init()
    made.start()
    yield made
    assert made.stop() == 0


@pytest.fixture(scope="module")
def session(tried):
    """One connection for all requests, signed in as admin."""
    with requests.Session() as made:
        made.headers["Authorization"] = f"Bearer {tried.admin_token()}"
        made.verify = str(tried.directory / "root.pem")
        yield made


def test_document_that_is_tried_is_the_one_that_is_served(tried) -> None:
    with tried.client(None) as client:
        assert client.get("/openapi.json").json() == client.get("/api/v1/openapi.json").json() == DOCUMENT


@schema.parametrize()
@settings(
    max_examples=6,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_request_of_the_document_is_answered_as_documented(case, tried, session) -> None:
    base_url = f"https://{tried.addresses()['rest']}"
    case.call_and_validate(base_url=base_url, session=session, verify=session.verify, checks=CHECKS)
