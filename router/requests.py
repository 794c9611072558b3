"""What a request says, checked, and what an answer looks like. Pure."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson
from aiohttp import web

from metastore.errors import InvalidRequest
from metastore.records import Record
from metastore.wire.client_messages import EXISTS


def path_of(request: web.Request) -> str:
    """The path as it was sent, also of a request for a whole URL (RFC 9112, absolute-form)."""
    target = request.raw_path
    if not target.startswith("/"):
        _, mark, rest = target.partition("://")
        target = "/" + rest.partition("/")[2] if mark else target
    return target.partition("?")[0]


def split_path(request: web.Request, prefix: str) -> tuple[str, str]:
    """``(namespace, key)`` of the path, percent-decoded exactly once; nothing is normalised, so
    that keys such as ``a//b`` and ``a/../b`` survive. Raises InvalidRequest."""
    whole = path_of(request)
    if not whole.startswith(prefix):  # it has the prefix only once decoded, or in another spelling
        raise web.HTTPNotFound
    raw = whole[len(prefix) :]
    namespace, _, key = raw.partition("/")
    try:
        return unquote_to_bytes(namespace).decode(), unquote_to_bytes(key).decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"the path {raw!r:.100} is not percent-encoded UTF-8") from None


def query(request: web.Request, *known: str) -> dict[str, str]:
    """The query parameters; unknown or repeated ones are refused."""
    found: dict[str, str] = {}
    for name, value in request.query.items():
        if name not in known:
            raise InvalidRequest(f"unknown query parameter {name!r:.60}; known here: {', '.join(known)}")
        if name in found:
            raise InvalidRequest(f"query parameter {name!r} is given twice")
        found[name] = value
    return found


def number(name: str, text: str, low: int, high: int) -> int:
    """A whole number within bounds. Raises InvalidRequest."""
    if not text.isascii() or not text.isdigit() or len(text) > 19 or not low <= int(text) <= high:
        raise InvalidRequest(f"{name} = {text!r:.40} is not a whole number from {low} to {high}")
    return int(text)


def flag(name: str, text: str) -> bool:
    if text not in ("true", "false", "1", "0", ""):
        raise InvalidRequest(f"{name} = {text!r:.40}: use true or false")
    return text in ("true", "1", "")


def etag_version(name: str, text: str) -> int | None:
    """The version in an entity tag, None for ``*``. Raises InvalidRequest."""
    text = text.strip()
    if text == "*":
        return None
    tag = text.removeprefix("W/").strip('"')
    if not tag.isascii() or not tag.isdigit() or len(tag) > 18:
        raise InvalidRequest(f'{name}: {text!r:.60} is neither * nor one version such as "12"')
    return int(tag)


def write_condition(request: web.Request) -> int | None:
    """The wire condition of If-Match / If-None-Match on a write."""
    match, none_match = request.headers.get("If-Match"), request.headers.get("If-None-Match")
    if match is not None and none_match is not None:
        raise InvalidRequest("give If-Match or If-None-Match, not both")
    if none_match is not None:
        if etag_version("If-None-Match", none_match) is not None:
            raise InvalidRequest("If-None-Match on a write takes only *")
        return 0
    if match is not None:
        version = etag_version("If-Match", match)
        if version == 0:
            raise InvalidRequest(
                'If-Match: "0" is no version; for a record that must be absent use If-None-Match: *'
            )
        return EXISTS if version is None else version
    return None


def item_json(key: str, record: Record, keys_only: bool) -> dict[str, Any]:
    item: dict[str, Any] = {"key": key, "version": record.version}
    if keys_only:
        return item
    item["created"] = record.created
    item["content_type"] = record.content_type
    try:
        item["value"] = record.value.decode()
    except UnicodeDecodeError:
        item["value_base64"] = base64.b64encode(record.value).decode()
    return item


def json_response(value: Any, status: int = 200, **headers: str) -> web.Response:
    return web.Response(
        body=orjson.dumps(value), status=status, content_type="application/json", headers=headers
    )
