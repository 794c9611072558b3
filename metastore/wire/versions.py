"""Which versions of the protocol two sides speak, told in every hello. Sans-I/O.

Each side tells ``[lowest, highest, build]``: the versions that it speaks, and, for people, which build it is. The highest
that both speak is used; where there is none, both are told so, with both ranges and whose turn it is to be upgraded. A build
from before this was told speaks version 1. The frame of a hello, and its elements as they are, never change.

What one side does not know of the other's is passed over: elements behind those of a hello, fields behind those of a message
between nodes, members of a map, and frames and messages between nodes with numbers from OPTIONAL on. So whatever may be passed over can
be added without a new version. What must not be (a new kind of operation or an element of one, a message
that has to be acted on) takes a new version, and is sent only where that was agreed on: anything else that is
unknown ends the connection. A client that has not heard the node's hello yet sends what its lowest version has.

Nodes also tell each other the feature level that they know the cluster to be at, and up to which they support any
(``metastore.node.features``): in the hello, and in a frame of its own when it is raised later.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, NamedTuple

from metastore.errors import NoCommonVersion, ProtocolError
from metastore.layout import FIRST_LEVEL, MAX_LEVEL
from metastore.operations import OPERATIONS

#: numbers of frames, and of messages between nodes, from which on who does not know one passes it over
OPTIONAL: Final = 128
MAX_VERSION: Final = 1 << 16
#: of the HTTP requests and answers of ``/v1/rpc``
HEADER: Final = "Metastore-Protocol"


class Spoken(NamedTuple):
    """The versions from ``lowest`` to ``highest``; ``build``: who speaks them."""

    lowest: int
    highest: int
    build: str

    def __str__(self) -> str:
        span = (
            f"version {self.lowest}"
            if self.lowest == self.highest
            else f"versions {self.lowest} to {self.highest}"
        )
        return f"{span} (build {self.build or 'unknown'})"


@cache
def build() -> str:
    """The version of this build."""
    try:
        return version("metastore")
    except PackageNotFoundError:  # a tree that was not installed
        return ""


def peer_versions() -> Spoken:
    """What this build speaks with other nodes."""
    return Spoken(1, 1, build())


def client_versions() -> Spoken:
    """What this build speaks as a client, and with clients: up to the version that its newest operation came with."""
    return Spoken(1, max(op.since for op in OPERATIONS.values()), build())


#: a build that tells nothing
UNTOLD: Final = Spoken(1, 1, "")


class Levels(NamedTuple):
    """``level``: the cluster's feature level, as far as its teller knows. ``supported``: up to which its build supports any."""

    level: int = FIRST_LEVEL
    supported: int = FIRST_LEVEL


def read_level(raw: Any) -> int:
    """A feature level that is told. Raises ProtocolError."""
    if type(raw) is not int or not FIRST_LEVEL <= raw <= MAX_LEVEL:
        raise ProtocolError(
            f"{raw!r:.40} was sent as a feature level, which is a number from {FIRST_LEVEL} to {MAX_LEVEL}"
        )
    return raw


def levels_at(body: list[Any], at: int) -> Levels:
    """What a node's hello tells in its element ``at``; the first level, if it has none. Raises ProtocolError."""
    if len(body) <= at:
        return Levels()
    raw = body[at]
    if type(raw) is not list or not 2 <= len(raw) <= 16:
        raise ProtocolError("malformed hello: the feature levels are not [level, supported]")
    level, supported = map(read_level, raw[:2])
    if level > supported:
        raise ProtocolError(
            f"a node that supports feature levels up to {supported} says that the cluster is at {level}"
        )
    return Levels(level, supported)


def read_spoken(raw: Any) -> Spoken:
    """What a hello tells; more elements are of a later version. Raises ProtocolError."""
    if type(raw) is not list or not 3 <= len(raw) <= 16:
        raise ProtocolError("malformed hello: the versions that are spoken are not [lowest, highest, build]")
    lowest, highest, told = raw[:3]
    counts = type(lowest) is int and type(highest) is int and 1 <= lowest <= highest < MAX_VERSION
    if not counts or type(told) is not str or len(told) > 64 or not told.isprintable():
        raise ProtocolError("malformed hello: the range of versions is empty or out of bounds")
    return Spoken(lowest, highest, told)


def spoken_at(body: list[Any], at: int) -> Spoken:
    """What a hello tells in its element ``at``, if it has one. Raises ProtocolError."""
    return read_spoken(body[at]) if len(body) > at else UNTOLD


def agree(mine: Spoken, me: str, theirs: Spoken, them: str) -> int:
    """The version that is used between ``me`` and ``them`` (names for people). Raises NoCommonVersion."""
    highest = min(mine.highest, theirs.highest)
    if highest >= max(mine.lowest, theirs.lowest):
        return highest
    older, newer, wanted = (me, them, theirs) if mine.highest < theirs.lowest else (them, me, mine)
    raise NoCommonVersion(
        f"no version of the protocol in common: {me} speaks {mine}, {them} speaks {theirs}; upgrade {older} first, to a build "
        f"that speaks version {wanted.lowest}, or take {newer} back to the build it had"
    )


def to_header(spoken: Spoken) -> str:
    """For HEADER."""
    return f"{spoken.lowest} {spoken.highest} {spoken.build}".strip()


def from_header(text: str | None) -> Spoken:
    """Raises ProtocolError."""
    if text is None:
        return UNTOLD
    parts = [*text.split(" ", 2), ""]
    if len(parts) < 3 or not all(part.isascii() and part.isdigit() and len(part) < 9 for part in parts[:2]):
        raise ProtocolError(f"{HEADER} is not 'lowest highest build'")
    return read_spoken([int(parts[0]), int(parts[1]), parts[2]])
