"""Through the router, for what cannot go directly: HTTP in the place of a node's connection.

``RouterConnection.submit`` has the surface of NodeConnection's: operations of one loop tick share a
POST of ``/v1/rpc``, msgpack ``[client_id, timeout_ms, [op, ...]]`` -> ``[result, ...]``, the same
operations and results as in frames (wire.client_messages). Request ids are the operation's own, so
that a change of path between two attempts never applies a write twice (R7).
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

import msgpack

from metastore.decoding import MAX_ANSWER_ITEMS, MAX_DOCUMENT_BYTES, Undecodable, load_json, unpack_body
from metastore.elements import shown
from metastore.errors import (
    BY_STATUS,
    ConfigError,
    InternalError,
    InvalidRequest,
    MetastoreError,
    Overloaded,
    ProtocolError,
    Unavailable,
)
from metastore.operations import ID_AT, Op, size_of
from metastore.routing.connection import (
    CONNECT_TIMEOUT_S,
    FOR_EVER_S,
    MAX_FRAME_BYTES,
    MAX_OPS_PER_FRAME,
    MAX_OUTSTANDING,
)
from metastore.routing.failures import AttemptTimeout, ConnectionLost, Malformed
from metastore.topology import TopologyTable
from metastore.wire.answer_checks import DETAIL, MAX_MESSAGE, check_answer
from metastore.wire.client_messages import MAX_TIMEOUT_MS
from metastore.wire.versions import HEADER, client_versions, to_header

if TYPE_CHECKING:
    import aiohttp

MAX_CONNECTIONS: Final = 32
MAX_ANSWER_BYTES: Final = 64 << 20
MAX_LINE_BYTES: Final = 4 << 20
SILENCE_S: Final = 5.0
#: of those that share a code, the one with the lowest number
BY_CODE: Final = {
    cls.code: cls for _, cls in sorted(BY_STATUS.items(), reverse=True) if cls is not InternalError
}

Waiting = tuple[bytes, list[Any], float, float, asyncio.Future[Any]]
"""``(client id, op, until, patience, future)``."""
Sent = tuple[Op, float, asyncio.Future[Any]]
"""``(op, until, future)``."""


def error_of(problem: Any) -> MetastoreError:
    """The error that a problem document (RFC 9457) stands for."""
    code = problem.get("code") if isinstance(problem, dict) else None
    if type(code) is not str:
        return InternalError(f"the router's answer is not a problem document: {shown(problem)}")
    error = BY_CODE.get(code, InternalError)(str(problem.get("detail", ""))[:MAX_MESSAGE])
    error.detail = {k: v for k, v in problem.items() if k in DETAIL and DETAIL[k](v)}
    return error


def results_of(batch: list[Sent], raw: bytes) -> list[Any]:
    """The results in the body of an answer, each of them in the form of its operation's. Raises Malformed."""
    try:
        found = unpack_body(raw, MAX_ANSWER_ITEMS)
    except ProtocolError as e:
        raise Malformed(f"the router's answer is malformed: {e.message}", sent=True) from None
    wrong = "" if type(found) is list else "it is not a list of results"
    for result in found if not wrong else ():
        if type(result) is not list or not result or type(result[0]) is not int:
            wrong = "a result is not an array that begins with a number"
        elif not 0 <= result[0] < len(batch):
            wrong = "a result belongs to no operation that was sent"
        else:
            wrong = check_answer(batch[result[0]][0], result)
        if wrong:
            break
    if wrong:
        raise Malformed(f"the router's answer is malformed: {wrong}", sent=True)
    return found  # type: ignore[no-any-return]


class RouterConnection:
    """One router. Opens nothing before it is used; ``close`` it."""

    def __init__(self, url: str, name: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise InvalidRequest(f"router = {url!r:.100}: give its URL, as in http://127.0.0.1:8080")
        if importlib.util.find_spec("aiohttp") is None:
            raise ConfigError(
                f"router = {url!r:.100}: this needs aiohttp, which is not installed: pip install 'metastore[http]'"
            )
        self.url = url.rstrip("/")
        self.name = name
        self.lost = False
        #: an operation was given up, and no answer came since
        self.unresponsive = False
        self.posts = 0
        self._session: aiohttp.ClientSession | None = None
        self._out: list[Waiting] = []
        self._waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            import aiohttp  # here: most clients never need it

            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
                headers={"User-Agent": f"metastore-client ({self.name})"},
                read_bufsize=256 << 10,
            )
        return self._session

    async def close(self) -> None:
        self.lost = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _, _, _, _, future in self._out:
            _fail(future, ConnectionLost("the connection to the router is closed", sent=False))
        self._out.clear()
        if self._session is not None:
            await self._session.close()

    # --- operations -------------------------------------------------------------------------

    def submit(
        self, client_id: bytes, op: Op, until: float, patience_s: float = FOR_EVER_S
    ) -> asyncio.Future[Any]:
        """Send ``op`` with what else this tick brings. The future ends by ``until`` (loop time), or when
        ``patience_s`` have passed since it was sent: with the raw result, ConnectionLost or AttemptTimeout.
        Raises Overloaded when too many are outstanding."""
        if self.lost:
            raise ConnectionLost("the connection to the router is closed", sent=False)
        if self._waiting >= MAX_OUTSTANDING:
            raise Overloaded(
                f"{MAX_OUTSTANDING} operations wait for an answer of the router, the limit of a connection; send fewer at a time",
                retry_after_s=0.05,
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting += 1
        future.add_done_callback(self._ended)
        if not self._out:
            loop.call_soon(self._flush)
        self._out.append((client_id, op, until, patience_s, future))
        return future

    def _ended(self, _: asyncio.Future[Any]) -> None:
        self._waiting -= 1

    def _flush(self) -> None:
        out, self._out = self._out, []
        loop = asyncio.get_running_loop()
        now = loop.time()
        while out:
            client_id, size = out[0][0], 0
            batch: list[Sent] = []
            for client, op, until, patience_s, future in out[:MAX_OPS_PER_FRAME]:
                if client != client_id or size >= MAX_FRAME_BYTES:
                    break
                op[ID_AT] = len(batch)  # the id: unique in this request
                size += size_of(op)
                batch.append((op, min(until, now + patience_s), future))
            out = out[len(batch) :]
            task = loop.create_task(self._post(client_id, batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _late(self, batch: list[Sent]) -> None:
        """Operations whose time has passed end, those that may wait longer stay."""
        now = asyncio.get_running_loop().time()
        for _, until, future in batch:
            if until <= now and not future.done():
                self.unresponsive = True
                future.set_exception(AttemptTimeout("the router does not answer"))

    async def _post(self, client_id: bytes, batch: list[Sent]) -> None:
        error: MetastoreError = ConnectionLost("closed", sent=True)
        loop = asyncio.get_running_loop()
        now = loop.time()
        # one answer for all: an operation with less time than the others ends by itself
        timers = [loop.call_at(until, self._late, batch) for until in {until for _, until, _ in batch}]
        try:
            left_s = max(until for _, until, _ in batch) - now
            timeout_ms = min(MAX_TIMEOUT_MS, max(1, int(left_s * 1000)))
            body = msgpack.packb([client_id, timeout_ms, [op for op, _, _ in batch]])
            async with asyncio.timeout(max(0.001, left_s)):
                results = results_of(batch, await self._ask(body))
            self.unresponsive = False
            for result in results:
                future = batch[result[0]][2]
                if not future.done():
                    future.set_result(result)
            error = ConnectionLost("the router left an operation unanswered", sent=True)
        except TimeoutError:
            self.unresponsive = True
            error = AttemptTimeout("the router does not answer")
        except ConnectionLost as e:
            error = e
        except MetastoreError as e:  # of the request as a whole
            self.unresponsive = False
            for number, (_, _, future) in enumerate(batch):
                if not future.done():
                    future.set_result([number, e.status, e.message, e.detail])
        finally:
            for timer in timers:
                timer.cancel()
            for _, _, future in batch:
                _fail(future, error)

    async def _ask(self, body: bytes) -> bytes:
        """POST /v1/rpc: the body of the answer. Raises ConnectionLost, or what the router says of the request as a whole."""
        import aiohttp

        self.posts += 1
        headers = {"Content-Type": "application/msgpack", HEADER: to_header(client_versions())}
        try:
            async with self.session().post(self.url + "/v1/rpc", data=body, headers=headers) as response:
                raw = await _read(response)
                if response.status == 200:
                    return raw
                raise self._refusal(response.status, response.content_type, raw)
        except aiohttp.ClientConnectorError as e:
            raise ConnectionLost(f"router {self.url}: {e}", sent=False, refused=True) from None
        except (aiohttp.ClientError, OSError, RuntimeError) as e:
            # RuntimeError: aiohttp's for a connection that is gone, or a closed session
            text = str(e) or type(e).__name__
            raise ConnectionLost(f"router {self.url}: {text}", sent=True) from None

    def _refusal(self, status: int, content_type: str, raw: bytes) -> MetastoreError:
        if content_type == "application/problem+json":
            try:
                return error_of(load_json(raw))
            except Undecodable:
                pass
        if status in (404, 405, 501):
            return Unavailable(
                f"{self.url} answers {status}: is it a router of this version?", retry_after_s=1
            )
        return ConnectionLost(f"router {self.url} answers {status}", sent=True)

    # --- the rest -----------------------------------------------------------------------------

    async def topology(self, timeout_s: float) -> TopologyTable:
        """The router's table. Raises Unavailable."""
        try:
            async with asyncio.timeout(timeout_s):
                raw = await self._get("/v1/topology")
                return TopologyTable.from_wire(load_json(raw, MAX_ANSWER_ITEMS, MAX_DOCUMENT_BYTES))
        except (TimeoutError, Undecodable) as e:
            raise Unavailable(f"router {self.url} did not answer with the topology: {e!r}") from None

    async def alive(self) -> bool:
        """Whether it answers at all, soon."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S * 2):
                await self._get("/livez")
            return True
        except (TimeoutError, MetastoreError):
            return False

    async def _get(self, path: str) -> bytes:
        import aiohttp

        try:
            async with self.session().get(self.url + path) as response:
                raw = await _read(response)
                if response.status != 200:
                    raise self._refusal(response.status, response.content_type, raw)
                return raw
        except (aiohttp.ClientError, OSError, RuntimeError) as e:
            raise Unavailable(f"router {self.url}: {str(e) or type(e).__name__}") from None

    async def events(self, namespace: str, params: dict[str, str]) -> AsyncIterator[tuple[str, Any] | None]:
        """GET /v1/watch/{namespace}: None once it has begun, then ``(resume token, event)`` for each
        message, event None when the message only carries the watch's position. Ends when the router ends it; raises the error that the
        router sends, or ConnectionLost. A router that sends nothing is asked whether it is alive."""
        import aiohttp

        try:
            async with self.session().get(f"{self.url}/v1/watch/{namespace}", params=params) as response:
                if response.status != 200:
                    raise self._refusal(response.status, response.content_type, await _read(response))
                yield None
                token, word, data = "", "", []
                async for line in self._lines(response):
                    name, _, value = line.partition(":")
                    value = value.removeprefix(" ")
                    if name == "id":
                        token = value
                    elif name == "event":
                        word = value
                    elif name == "data":
                        data.append(value)
                    elif not line:
                        event = (
                            load_json("\n".join(data).encode(), max_bytes=MAX_LINE_BYTES) if data else None
                        )
                        if word == "error" or (isinstance(event, dict) and "code" in event):
                            raise error_of(event)
                        if token:
                            yield token, None if word == "started" else event
                        word, data = "", []
        except Undecodable as e:
            raise Malformed(f"router {self.url}: {e}", sent=True) from None
        except (aiohttp.ClientError, OSError, RuntimeError) as e:
            raise ConnectionLost(f"router {self.url}: {str(e) or type(e).__name__}", sent=True) from None

    async def _lines(self, response: aiohttp.ClientResponse) -> AsyncIterator[str]:
        """Lines of the body, of at most MAX_LINE_BYTES. Raises ConnectionLost."""
        buffer = b""
        while True:
            reading = asyncio.ensure_future(response.content.readany())
            try:
                while not (await asyncio.wait({reading}, timeout=SILENCE_S))[0]:
                    if not await self.alive():
                        raise ConnectionLost(
                            f"router {self.url} sent nothing for {SILENCE_S:g} s and does not answer /livez",
                            sent=True,
                        )
                chunk = reading.result()
            finally:
                reading.cancel()
            if not chunk:
                return
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                yield line.rstrip(b"\r").decode("utf-8", "replace")
            if len(buffer) > MAX_LINE_BYTES:
                raise ConnectionLost(
                    f"router {self.url} sent a line of more than {MAX_LINE_BYTES} bytes", sent=True
                )


def _fail(future: asyncio.Future[Any], error: MetastoreError) -> None:
    if not future.done():
        future.set_exception(error)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body, bounded. Raises ConnectionLost."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise ConnectionLost(
                f"the router's answer is over the limit of {MAX_ANSWER_BYTES} bytes", sent=True
            )
        chunks.append(chunk)
    return b"".join(chunks)
