"""The one place that opens TCP sockets: what listens, and what dials."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

from metastore.addresses import split_address

BACKLOG: Final = 1024

P = TypeVar("P", bound=asyncio.BaseProtocol)


async def listen(
    protocol: Callable[[], asyncio.BaseProtocol], address: str, backlog: int = BACKLOG
) -> asyncio.Server:
    """Listen on ``address`` (``host:port``, checked before); ``protocol`` makes each connection. Raises OSError."""
    host, port = split_address(address)
    loop = asyncio.get_running_loop()
    return await loop.create_server(protocol, host, port, backlog=backlog, reuse_address=True)


async def dial(protocol: Callable[[], P], address: str) -> P:
    """A connection to ``address`` (``host:port``); how long that may take is the caller's to say. Raises OSError, and ValueError
    when it is no address."""
    host, port = split_address(address)
    if not host or not 0 < port < 65536:
        raise ValueError(f"{address!r:.100} is not an address: give host:port, with a port from 1 to 65535")
    _, connection = await asyncio.get_running_loop().create_connection(protocol, host, port)
    return connection
