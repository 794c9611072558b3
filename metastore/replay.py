"""``python -m metastore.replay FILE``: what a node's core heard lately and what it did, played again through this build's core.

Prints each event, when it came and what came of it, and says whether that is what the node recorded. A node writes such a
file when it stops by a failure, and when it is asked (deploy/README.md, "When a node has stopped").

Exit code 0: the same came of it; 1: something else did; 2: the file cannot be read.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from metastore.core import effects as fx
from metastore.core.journal import Half, LogRead
from metastore.core.node import NodeCore
from metastore.core.payloads import read_payload
from metastore.core.readable import line_of
from metastore.core.recording import Recording, plain, unpack
from metastore.errors import MetastoreError, ProtocolError

SECOND: Final = 1_000_000_000


class Difference(NamedTuple):
    """What the node recorded, and what came now; None = nothing more. ``event``: its number."""

    event: int
    recorded: Any
    found: Any


class Played(NamedTuple):
    """One event and what came of it. ``raised``: an exception, in words."""

    number: int
    now: int
    event: Any
    src: Any
    effects: list[fx.Effect]
    raised: str


class Player:
    """Plays recordings; ``difference``: the first one found."""

    def __init__(self) -> None:
        self.difference: Difference | None = None
        self.events = 0
        self._reads: Iterator[LogRead] = iter(())

    def play(self, recording: Recording) -> Iterator[Played]:
        """Each event of it. A half begins at its checkpoint, so a difference in the first does not follow into the
        second."""
        for half in recording.halves:
            yield from self._play(half)

    def _play(self, half: Half) -> Iterator[Played]:
        self._reads = iter([record for record in half.records if type(record) is LogRead])
        recorded = [effect for record in half.records if type(record) is list for effect in record]
        core = NodeCore.restored(half.checkpoint, self._read_log, read_payload)
        at = self._compare(core.take(), recorded, 0)
        heard: list[Any] = [record for record in half.records if type(record) is tuple]
        for now, event, src in heard:
            self.events += 1
            raised = ""
            try:
                core.handle(now, event, src)
            except (ProtocolError, ArithmeticError, LookupError, TypeError, ValueError, AssertionError) as e:
                raised = f"{type(e).__name__}: {e}"
            effects = core.take()
            at = self._compare(effects, recorded, at)
            yield Played(self.events, now, event, src, effects, raised)
        if at < len(recorded):
            self._differs(recorded[at], None)

    def _compare(self, found: list[fx.Effect], recorded: list[fx.Effect], at: int) -> int:
        for effect in found:
            theirs = recorded[at] if at < len(recorded) else None
            if theirs is None or plain(theirs) != plain(effect):
                self._differs(theirs, effect)
            at += 1
        return at

    def _differs(self, recorded: Any, found: Any) -> None:
        if self.difference is None:
            self.difference = Difference(self.events, recorded, found)

    def _read_log(self, p: int, first: int, max_bytes: int) -> list[bytes]:
        read = next(self._reads, None)
        if read is None or (read.p, read.first) != (p, first):
            raise LookupError(f"entry {first} of partition {p} was not read when this was recorded")
        if read.error is not None:
            raise read.error
        return read.blobs


def partition_of(event: Any) -> int | None:
    """The partition that an event or a message is of; None = of all that are there."""
    p = getattr(event, "p", None)
    return p if isinstance(p, int) else None


def lines_of(played: Played, began: int) -> Iterator[str]:
    came_from = f" from {played.src.node}" if played.src is not None else ""
    yield f"{played.number:6} +{(played.now - began) / SECOND:.4f}s  {line_of(played.event)}{came_from}"
    for effect in played.effects:
        yield f"{'':18}-> {line_of(effect)}"
    if played.raised:
        yield f"{'':18}!! {played.raised}"


def head_of(recording: Recording) -> str:
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(recording.at_ms / 1000))
    return f"node {recording.node}, build {recording.build}, written {when} ({recording.why})"


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m metastore.replay", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--partition", type=int, help="show events of this one, and of all, alone")
    parser.add_argument("--last", type=int, default=0, metavar="N", help="show the last N events alone")
    parser.add_argument("--quiet", action="store_true", help="show the verdict alone")
    args = parser.parse_args(argv)
    try:
        recording = unpack(args.file.read_bytes())
        print(head_of(recording))
        return show(recording, args.partition, args.last, args.quiet)
    except MetastoreError as e:
        print(f"{args.file}: {e.message}", file=sys.stderr)
    except OSError as e:
        print(f"{args.file}: {e.strerror}", file=sys.stderr)
    return 2


def show(recording: Recording, partition: int | None, last: int, quiet: bool) -> int:
    """Print what is asked for, and the verdict; returns the exit code."""
    player, began = Player(), None
    count = sum(type(record) is tuple for half in recording.halves for record in half.records)
    for played in player.play(recording):
        began = played.now if began is None else began
        of = partition_of(played.event)
        wanted = partition is None or of is None or of == partition
        if not quiet and wanted and (not last or played.number > count - last):
            for line in lines_of(played, began):
                print(line)
    found = player.difference
    if found is None:
        print(f"{player.events} events: the same came of them as the node recorded")
        return 0
    print(f"{player.events} events: something else came of event {found.event}")
    print(f"  recorded: {line_of(found.recorded) if found.recorded is not None else 'nothing more'}")
    print(f"  now:      {line_of(found.found) if found.found is not None else 'nothing more'}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
