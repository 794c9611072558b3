"""Where the time of a put goes: ``python -m bench.stages``.

Each stage alone, with the functions that do it and no others, best of many runs, in microseconds of CPU per operation;
64 puts of 100 bytes that arrive together make one entry, or one that arrives alone. Sockets, threads and waiting are
not in it: what is missing between this and the CPU of whole servers (``bench.compare``) is the system calls and the loop.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.measure import show
from metastore.core import messages as m
from metastore.core.entry import check_entries, pack_entry
from metastore.core.machine import Machine
from metastore.core.payloads import read_payload
from metastore.keys import storage_key_of, well_placed
from metastore.operations import GET, LINEARIZABLE, PUT
from metastore.storage.lmdb_engine import LmdbEngine
from metastore.storage.overlay import Overlay, PartitionOverlay
from metastore.storage.records import pack_entry_record
from metastore.storage.segments import block_bytes
from metastore.storage.state import State, record_writes
from metastore.wire import frames
from metastore.wire.op_checks import check_request, is_simple
from metastore.wire.peer_messages import decode, encode

CLIENT = bytes(16)
KEYS = [storage_key_of("bench", f"directory-{n % 200:04d}/key-{n // 200:05d}") for n in range(4096)]
EPOCH = 1 << 16
ROUNDS = 400


class Stages:
    """A batch of ``size`` puts, stage by stage. Each method is one stage; what it needs is made before."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.seq = 0
        no_rows: dict[bytes, bytes] = {}
        self.leader, self.follower = Machine(no_rows.get), Machine(no_rows.get)
        self.index = 0
        self.ops: list[list[Any]] = []
        self.frame = self.payload = self.blob = self.peer_frame = b""
        self.entry: Any = None
        self.applied: Any = None
        self.results: list[Any] = []
        self.overlay = Overlay()

    # --- the stages of a put, in order --------------------------------------------------------

    def client_packs(self) -> None:
        ops = []
        for n in range(self.size):
            self.seq += 1
            storage_key = KEYS[(self.seq * 7919) % len(KEYS)]
            ops.append([self.seq, PUT, 0, storage_key, self.seq, self.seq - n, 0, None, b"x" * 100, "", None])
        self.frame = frames.pack(frames.REQUEST, [CLIENT, 5000, ops])

    def leader_parses(self) -> None:
        decoder = frames.FrameDecoder()
        decoder.push(self.frame)
        found = decoder.pull()
        assert found is not None
        self.ops = found[1][2]

    def leader_checks(self) -> None:
        assert check_request([CLIENT, 5000, self.ops]) is None
        for op in self.ops:
            assert is_simple(op)
            assert well_placed(op[3], 0)

    def leader_resolves(self) -> None:
        self.index += 1
        payload, self.results = self.leader.proposals.resolve(self.index, [(CLIENT, op) for op in self.ops])
        assert payload is not None
        self.payload = payload

    def leader_packs_for_peers(self) -> None:
        self.blob = pack_entry(self.index, EPOCH, self.payload)
        message = m.Append(
            0, EPOCH, EPOCH if self.index > 1 else 0, self.index - 1, self.index - 1, [self.blob]
        )
        for _ in range(2):
            self.peer_frame = frames.pack(frames.PEER, [encode(message)])

    def log_lays_out(self) -> None:
        block_bytes(self.index, self.index, 0, pack_entry_record(0, self.index - 1, self.blob))

    def follower_checks(self) -> None:
        decoder = frames.FrameDecoder()
        decoder.push(self.peer_frame)
        found = decoder.pull()
        assert found is not None
        [message] = [decode(raw) for raw in found[1]]
        [(_, _, self.entry)] = check_entries(
            message.entries, message.prev_index + 1, message.prev_epoch, EPOCH, read_payload
        )

    def follower_applies(self) -> None:
        self.applied = self.follower.apply(self.index, self.entry)

    def overlay_takes(self) -> None:
        self.overlay.apply(0, self.applied.changes, self.applied.metadata)

    def leader_applies(self) -> None:
        self.leader.apply(self.index, None)

    def leader_answers(self) -> None:
        answers = []
        for op, (_, tail) in zip(self.ops, self.results, strict=True):
            answers.append([op[0], *tail])
        frames.pack(frames.RESPONSE, answers)

    #: stage -> (what does it, how many nodes do)
    PUT = (
        ("client_packs", "client: operations into a frame", 0),
        ("leader_parses", "leader: frame into operations", 1),
        ("leader_checks", "leader: form, bounds, placement", 1),
        ("leader_resolves", "leader: conditions, versions, dedupe, records, payload", 1),
        ("leader_packs_for_peers", "leader: entry, and frames to two followers", 1),
        ("log_lays_out", "log record and block, with checksums", 3),
        ("follower_checks", "follower: frame, entry, checksums, every row", 2),
        ("follower_applies", "follower: apply", 2),
        ("leader_applies", "leader: apply", 1),
        ("overlay_takes", "overlay of the state", 3),
        ("leader_answers", "leader: answers into a frame", 1),
    )


def state_us(state: State) -> float:
    """One record of 5,000 changed in LMDB, its share of the commit included."""
    part, best = PartitionOverlay(), float("inf")
    for storage_key in KEYS:
        part.put(storage_key, bytes(130))
    for _ in range(5):
        began = time.thread_time()
        state.write([], record_writes(1, part.records))
        best = min(best, time.thread_time() - began)
    return best / len(KEYS) * 1e6


def get_us(size: int) -> dict[str, float]:
    """Of a get: the frame parsed, checked, answered, without the state's own lookup."""
    ops = [[n, GET, 0, KEYS[n % len(KEYS)], LINEARIZABLE, None] for n in range(size)]
    raw = frames.pack(frames.REQUEST, [CLIENT, 5000, ops])

    def parse() -> list[Any]:
        decoder = frames.FrameDecoder()
        decoder.push(raw)
        found = decoder.pull()
        assert found is not None
        parsed: list[Any] = found[1][2]
        return parsed

    def check() -> None:
        for op in ops:
            assert is_simple(op)

    def answer() -> None:
        frames.pack(frames.RESPONSE, [[op[0], 0, bytes(130), 0] for op in ops])

    return {
        "get: frame into operations": best_us(parse, size),
        "get: form and bounds": best_us(check, size),
        "get: answers into a frame": best_us(answer, size),
    }


def best_us(stage: Callable[[], Any], size: int) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.thread_time_ns()
        stage()
        best = min(best, time.thread_time_ns() - began)
    return best / size / 1000


def measure() -> dict[str, dict[str, float]]:
    """``{stage: {"alone": µs, "of 64": µs}}``, of all nodes that do it together."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="metastore-bench-") as folder:
        state = State(LmdbEngine.open(Path(folder), 1 << 30), True)
        for column, size in (("alone", 1), ("of 64", 64)):
            stages = Stages(size)
            best = dict.fromkeys((name for name, _, _ in Stages.PUT), float("inf"))
            for _ in range(ROUNDS):
                for name, _, _ in Stages.PUT:
                    stage = getattr(stages, name)
                    began = time.thread_time_ns()
                    stage()
                    best[name] = min(best[name], time.thread_time_ns() - began)
            for name, text, nodes in Stages.PUT:
                label = f"put: {text}" + (f" (x {nodes})" if nodes > 1 else "")
                found.setdefault(label, {})[column] = round(best[name] * max(nodes, 1) / size / 1000, 2)
            for label, us in get_us(size).items():
                found.setdefault(label, {})[column] = round(us, 2)
        us = round(3 * state_us(state), 2)
        found["put: state in LMDB, 4,096 changes to a transaction (x 3)"] = {"alone": us, "of 64": us}
        state.close()
    return found


def table(found: dict[str, dict[str, float]]) -> None:
    show(
        ["stage (µs of CPU per operation, all nodes)", "a put alone", "of 64 together"],
        [[label, v["alone"], v["of 64"]] for label, v in found.items()],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found = measure()
    table(found)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
