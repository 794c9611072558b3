"""The one place of cellctl that speaks HTTP, to nodes and routers."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from metastore.decoding import (
    MAX_ANSWER_ITEMS,
    MAX_DOCUMENT_BYTES,
    MAX_RECORD_BYTES,
    load_json,
)
from metastore.errors import InvalidRequest, MetastoreError, Unavailable


@contextmanager
def answer_of(
    url: str,
    timeout_s: float,
    *,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Iterator[http.client.HTTPResponse]:
    """The answer, to be read within. ``timeout_s``: of each wait. Raises InvalidRequest with what a server that refuses says, and
    Unavailable when there is no answer, when it breaks off while it is read, or when what is read is not valid."""
    what = "does not answer"
    try:
        request = urllib.request.Request(url, data=body, method=method, headers=dict(headers or {}))
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            what = "answered incompletely, or with what is not valid"
            yield response
    except MetastoreError:
        raise
    except urllib.error.HTTPError as e:
        raise (InvalidRequest if e.code < 500 else Unavailable)(_detail(url, e)) from None
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as e:
        reason = getattr(e, "reason", e) or type(e).__name__
        raise Unavailable(f"{url} {what}: {reason}") from None


def _detail(url: str, e: urllib.error.HTTPError) -> str:
    try:
        return str(load_json(e.read(MAX_RECORD_BYTES))["detail"])
    except (ValueError, KeyError, TypeError, OSError, http.client.HTTPException):
        return f"{url} answers {e.code}"


def fetch_json(url: str, timeout_s: float = 5.0, method: str = "GET") -> Any:
    """A JSON document. Raises as ``answer_of``."""
    with answer_of(url, timeout_s, method=method) as response:
        raw = response.read(MAX_DOCUMENT_BYTES + 1)
        return load_json(raw, MAX_ANSWER_ITEMS, MAX_DOCUMENT_BYTES)


def fetch_figure(url: str, name: str, timeout_s: float = 5.0) -> float | None:
    """A figure without labels from a page of metrics; None when it is not there. Raises as ``answer_of``."""
    with answer_of(url, timeout_s) as response:
        text = response.read(MAX_RECORD_BYTES).decode("utf-8", "replace")
        found = next((line for line in text.splitlines() if line.startswith(f"{name} ")), None)
        return None if found is None else float(found.split()[1])
