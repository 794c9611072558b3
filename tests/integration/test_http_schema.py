"""The API does what its document says: requests made from ``/openapi.json``, good and bad ones.

Every answer has a documented status, content type and form; what the document forbids is refused,
what it allows is taken (but for the rules between two parameters, which OpenAPI cannot say), and
nothing is a server error but 503 and, for a deadline of a millisecond, 504.
"""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from router.api.openapi import document
from router.api.operations import OPERATIONS
from tests.integration.harness import Cluster
from tests.processes import PATIENCE_S

#: in the detail of a 400 that is about two parameters, or about where keys live
BETWEEN = (
    "not both",
    "goes with",
    "needs at_least",
    "at most one of",
    "are in two",
    "no compares and no operations",
    "listing of another prefix",
    "was not made by this store",
    "of another",
    "nothing can be resumed",
    "reserved for the store",
    "needs consistency",
    "at_least needs",
)
#: a stream has no end, and the other speaks msgpack: both have tests of their own
NOT_HERE = ["watch", "rpc"]
#: an operation of a batch that is wrong gets a result of its own, and the batch 200
LENIENT = "batch"


def _schema() -> Any:
    config = SchemathesisConfig.from_dict(
        {
            "generation": {"deterministic": True},
            "phases": {"examples": {"enabled": False}, "coverage": {"enabled": False}},
            "checks": {
                "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", "503", "504", "507"]},
                "negative_data_rejection": {"expected-statuses": ["4xx"]},
            },
        }
    )
    found = schemathesis.openapi.from_dict(json.loads(json.dumps(document(OPERATIONS))), config=config)
    return found.exclude(operation_id=NOT_HERE)


schema = _schema()
session = requests.Session()


@schema.parametrize()  # type: ignore[untyped-decorator]  # schemathesis has no types for it
@settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_the_api_does_what_its_document_says(case: Any, shared_cell: Cluster) -> None:
    response = case.call(base_url=shared_cell.router, session=session, timeout=PATIENCE_S)
    excluded = [positive_data_acceptance]
    if case.operation.definition.raw["operationId"] == LENIENT:
        excluded.append(negative_data_rejection)
    case.validate_response(response, excluded_checks=excluded, headers={})
    positive = case.meta is None or case.meta.generation.mode.is_positive
    if positive and response.status_code in (400, 415) and case.method != "HEAD":
        assert any(text in response.json()["detail"] for text in BETWEEN), response.text


def test_the_document_is_served(shared_cell: Cluster) -> None:
    with urllib.request.urlopen(shared_cell.router + "/openapi.json", timeout=PATIENCE_S) as r:
        assert json.loads(r.read()) == json.loads(json.dumps(document(OPERATIONS)))
    with urllib.request.urlopen(shared_cell.router + "/docs", timeout=PATIENCE_S) as r:
        text = r.read().decode()
        assert r.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in r.headers["Content-Security-Policy"]
    for op in OPERATIONS:
        assert f'id="{op.id}"' in text
    assert "//cdn" not in text
    assert "<link" not in text
