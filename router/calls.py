"""A request as its handler sees it: found in the table of operations, parsed and checked by it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

import aiohttp
from aiohttp import hdrs, web

from metastore.decoding import MAX_ITEMS, TooMany, Undecodable, load_json, unpack_body
from metastore.errors import DeadlineExceeded, InvalidRequest, ProtocolError, TooLarge
from router.api.operation import Operation
from router.bulkheads import Reservation
from router.errors import (
    ExpectationFailed,
    MalformedHttp,
    MethodNotAllowed,
    NoSuchPath,
    UnsupportedMediaType,
)

MAX_QUERY_FIELDS = 32
CHUNK_BYTES = 65_536
JSON_TYPES = ("application/json",)
MSGPACK_TYPES = ("application/x-msgpack", "application/msgpack", "application/vnd.msgpack")


def decode_segment(raw: str) -> str:
    """Percent-decoded exactly once; nothing is normalised, so that keys such as ``a//b`` and
    ``a/../b`` survive. Raises InvalidRequest."""
    try:
        return unquote_to_bytes(raw.encode("utf-8", "surrogateescape")).decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"the path part {raw!r:.100} is not percent-encoded UTF-8") from None


class Routes:
    """Method and raw path -> operation and the parts of the path."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        #: path up to the first parameter -> how many parts follow -> method -> operation
        self._by_prefix: dict[str, dict[int, dict[str, Operation]]] = {}
        self.operations = {op.id: op for op in operations}
        for op in self.operations.values():
            prefix, _, rest = op.path.partition("/{")
            parts = rest.count("/") + 1 if rest else 0
            self._by_prefix.setdefault(prefix, {}).setdefault(parts, {})[op.method] = op
        self._with_key = {op.path.partition("/{")[0] for op in operations if op.path.endswith("/{key}")}

    def find(self, method: str, raw_path: str) -> tuple[Operation, list[str], str]:
        """``(operation, decoded parts, raw query)``. Raises NoSuchPath, MethodNotAllowed, InvalidRequest."""
        if raw_path.startswith(("http://", "https://")):  # as a proxy asks
            raw_path = "/" + raw_path.split("/", 3)[3] if raw_path.count("/") >= 3 else "/"
        path, _, query = raw_path.partition("?")
        parts: list[str] = []
        by_parts = self._by_prefix.get(path)
        if by_parts is None:
            for prefix, found in self._by_prefix.items():
                if path.startswith(prefix + "/") and max(found):
                    # a key is all that follows; any other part ends at the next slash
                    cuts = max(found) - 1 if prefix in self._with_key else -1
                    by_parts, parts = found, path[len(prefix) + 1 :].split("/", cuts)
                    break
        methods = (by_parts or {}).get(len(parts))
        if methods is None:
            raise NoSuchPath(
                f"there is no operation at {path!r:.200}; /docs and /openapi.json list all of them"
            )
        op = methods.get(method)
        if op is None:
            allow = sorted(methods)
            raise MethodNotAllowed(f"{method:.20} is not one of {', '.join(allow)} here", allow=allow)
        return op, [decode_segment(part) for part in parts], query


def parse_query(raw: str) -> dict[str, str]:
    """The query's fields. Raises InvalidRequest for one that is given twice, or is not UTF-8."""
    found: dict[str, str] = {}
    try:
        fields = parse_qsl(raw, keep_blank_values=True, errors="strict", max_num_fields=MAX_QUERY_FIELDS)
    except UnicodeDecodeError:
        raise InvalidRequest(f"the query {raw!r:.100} is not percent-encoded UTF-8") from None
    except ValueError:
        raise InvalidRequest(f"the query has more than {MAX_QUERY_FIELDS} parameters") from None
    for name, value in fields:
        if name in found:
            raise InvalidRequest(f"query parameter {name!r:.60} is given twice")
        found[name] = value
    return found


class Call:
    """See the module. ``values``: parameter -> value, by ``Param.key``; ``until``: the loop time by
    which the answer is due."""

    __slots__ = ("began", "operation", "request", "reservation", "until", "values", "write_timeout_s")

    def __init__(
        self,
        request: web.BaseRequest,
        operation: Operation,
        parts: list[str],
        raw_query: str,
        reservation: Reservation,
        deadline_s: float,
        write_timeout_s: float = 30.0,
    ) -> None:
        """Raises InvalidRequest, TooLarge."""
        self.request = request
        self.operation = operation
        self.reservation = reservation
        self.write_timeout_s = write_timeout_s
        values: dict[str, Any] = {}
        self.values = values
        query = parse_query(raw_query) if raw_query else {}
        in_path = iter(parts)
        for param in operation.params:
            text: str | None
            if param.place == "path":
                text = next(in_path)
            elif param.place == "query":
                text = query.pop(param.name, None)
            else:
                text = (
                    ", ".join(request.headers.getall(param.name)) if param.name in request.headers else None
                )
            values[param.key] = param.default if text is None else param.shape.parse(text, param.name)
        if query:
            known = [p.name for p in operation.params if p.place == "query"]
            raise InvalidRequest(
                f"unknown query parameter {next(iter(query))!r:.60}; "
                + (f"known here: {', '.join(known)}" if known else "none is known here")
            )
        timeout_ms = values.get("timeout_ms")
        if timeout_ms is not None:
            deadline_s = min(deadline_s, timeout_ms / 1000)
        self.began = asyncio.get_running_loop().time()
        self.until = self.began + deadline_s

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    @property
    def left_s(self) -> float:
        """Until the answer is due."""
        return self.until - asyncio.get_running_loop().time()

    @property
    def since_s(self) -> float:
        """How long ago its head had come."""
        return asyncio.get_running_loop().time() - self.began

    # --- the body -----------------------------------------------------------------------------

    async def body(self) -> bytes:
        """The body within its limit; a too large one is refused without reading it whole. It is
        held, piece by piece, against the router's bound. Raises InvalidRequest, TooLarge, Overloaded."""
        request, declared = self.request, self.operation.body
        assert declared is not None
        length = request.content_length
        if length is not None and length > declared.limit:
            raise TooLarge(f"a body of {length} bytes is over the limit of {declared.limit} bytes")
        if length:
            self.reservation.look(length)  # else it would be refused when most of it is here
        await self._expected()
        if request.content.is_eof() and request.content.exception() is None:
            # all of it is here already, as small ones are
            data = request.content.read_nowait()
            if len(data) <= declared.limit:
                self.reservation.take(len(data))
                return data
            raise TooLarge(f"the body is over the limit of {declared.limit} bytes")
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.write_timeout_s):
                async for chunk in request.content.iter_chunked(CHUNK_BYTES):
                    size += len(chunk)
                    if size > declared.limit:
                        raise TooLarge(f"the body is over the limit of {declared.limit} bytes")
                    self.reservation.take(len(chunk))
                    chunks.append(chunk)
        except TimeoutError:
            raise InvalidRequest(f"the body did not arrive within {self.write_timeout_s} s") from None
        except (web.RequestPayloadError, aiohttp.ClientPayloadError) as e:
            raise MalformedHttp(f"the body is not well-formed: {e}") from None
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _expected(self) -> None:
        """``Expect: 100-continue``: a client that asks before it sends is answered now, when nothing
        speaks against the body any more."""
        expect = self.request.headers.get(hdrs.EXPECT)
        if expect is None:
            return
        if expect.lower() != "100-continue":
            raise ExpectationFailed(f"Expect: {expect!r:.60}: only 100-continue is understood")
        if self.request.version >= aiohttp.HttpVersion11:
            await self.request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.request.writer.output_size = 0  # the answer itself has not begun

    def _of_type(self, types: tuple[str, ...], hint: str) -> None:
        # request.content_type says application/octet-stream for a missing one; so does this message
        if self.request.content_type not in types:
            raise UnsupportedMediaType(
                f"Content-Type {self.request.content_type!r:.60}: this operation takes {types[0]}{hint}"
            )

    async def json(self) -> Any:
        """The body as its shape has it. Raises as ``body``, UnsupportedMediaType."""
        self._of_type(JSON_TYPES, " (curl --json sends it)")
        raw = await self.body()
        try:
            value = load_json(raw, MAX_ITEMS, len(raw), "the body")
        except TooMany as e:
            raise TooLarge(f"{e}: send less in one request") from None
        except Undecodable as e:
            raise InvalidRequest(str(e)) from None
        assert self.operation.body is not None
        assert self.operation.body.shape is not None
        return self.operation.body.shape.check(value, "body")

    async def msgpack(self) -> Any:
        """The body, within the limits that hold for frames. Raises as ``body``, UnsupportedMediaType."""
        self._of_type(MSGPACK_TYPES, "")
        raw = await self.body()
        try:
            return unpack_body(raw, MAX_ITEMS)
        except ProtocolError as e:
            raise InvalidRequest(f"the body is not msgpack within its bounds: {e.message}") from None

    def in_time(self) -> None:
        """Raises DeadlineExceeded when the answer is due: nothing has been begun then."""
        if self.left_s <= 0:
            raise DeadlineExceeded(
                "the deadline passed before the request had arrived completely; nothing was done"
            )


Handler = Callable[[Call], Awaitable[web.StreamResponse]]
"""What answers the calls of one operation."""
