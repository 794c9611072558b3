"""The operations that are not about data: health, figures, the document of the API itself."""

from __future__ import annotations

from router.api.bodies import FREE_OBJECT
from router.api.operation import Answer, Operation
from router.api.shapes import Flag, Integer, Member, Object, Param

_READY = Object(
    {
        "ready": Member(Flag(), "", True),
        "partitions": Member(Integer(0, 1 << 20), "", True),
        "partitions_led": Member(Integer(0, 1 << 20), "With `leaders`: partitions that serve now."),
    },
    "Readiness",
)

SERVICE = (
    Operation(
        "getTopology",
        "GET",
        "/v1/topology",
        "Service",
        "Where things are",
        "Partitions, cells, leaders and nodes, as this router knows them.",
        answers=(Answer(200, "The table.", FREE_OBJECT),),
        problems=(400, 500, 503),
        example="curl URL/v1/topology",
    ),
    Operation(
        "livez",
        "GET",
        "/livez",
        "Service",
        "Whether the process lives",
        "Always 200.",
        answers=(Answer(200, "It does.", FREE_OBJECT),),
        problems=(400, 500),
        admitted=False,
        example="curl URL/livez",
    ),
    Operation(
        "readyz",
        "GET",
        "/readyz",
        "Service",
        "Whether the router serves",
        "200 once it knows where every key lives; 503 before, and while it stops.",
        (Param("leaders", "query", Flag(), "Also count the partitions that serve now.", default=False),),
        answers=(Answer(200, "It does.", _READY),),
        problems=(400, 500, 503),
        admitted=False,
        example="curl 'URL/readyz?leaders=true'",
    ),
    Operation(
        "metrics",
        "GET",
        "/metrics",
        "Service",
        "Figures for Prometheus",
        "Requests by operation and status, time to answer, how much of every bound is used.",
        answers=(Answer(200, "Text.", None, "text/plain"),),
        problems=(400, 500),
        admitted=False,
        example="curl URL/metrics",
    ),
    Operation(
        "openapi",
        "GET",
        "/openapi.json",
        "Service",
        "This API as OpenAPI 3.1",
        "Made from the table that the handlers themselves parse requests by.",
        answers=(Answer(200, "The document.", FREE_OBJECT),),
        problems=(400, 500),
        admitted=False,
        example="curl URL/openapi.json",
    ),
    Operation(
        "docs",
        "GET",
        "/docs",
        "Service",
        "This API for people",
        "One page, without anything from elsewhere.",
        answers=(Answer(200, "The page.", None, "text/html"),),
        problems=(400, 500),
        admitted=False,
        example="curl URL/docs",
    ),
)
