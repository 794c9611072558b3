"""The four kinds of numbers that are made of a version do not mix: mypy holds it (``warn_unused_ignores``), here are the places."""

from __future__ import annotations

from metastore.client.results import Fence, PutResult
from metastore.client.watch.resume_tokens import decode_resume, encode_resume
from metastore.core.dedupe import Sessions
from metastore.core.fences import Fences
from metastore.history import (
    FencingToken,
    LastSeenIndex,
    ResumePoint,
    Version,
    first_version,
    lock_version,
    resume_after,
    token_of,
    within_history,
)

VERSION, POINT, TOKEN, SEEN = Version(7), ResumePoint(7), FencingToken(7), LastSeenIndex(7)
POINT_OF_RING = bytes(8)


def test_a_token_is_of_a_lock() -> None:
    assert Fence("lock", token_of(VERSION)) == Fence("lock", TOKEN)
    Fence("lock", VERSION)  # type: ignore[arg-type]
    Fence("lock", POINT)  # type: ignore[arg-type]
    Fence("lock", SEEN)  # type: ignore[arg-type]
    Fence("lock", 7)  # type: ignore[arg-type]


def test_a_result_has_a_version() -> None:
    assert PutResult(lock_version(TOKEN), created=False) == PutResult(VERSION, created=False)
    PutResult(TOKEN, created=False)  # type: ignore[arg-type]
    PutResult(POINT, created=False)  # type: ignore[arg-type]
    PutResult(SEEN, created=False)  # type: ignore[arg-type]


def test_a_watch_goes_on_behind_what_was_seen() -> None:
    assert decode_resume(encode_resume([(POINT_OF_RING, resume_after(VERSION))])) == [(POINT_OF_RING, POINT)]
    encode_resume([(POINT_OF_RING, VERSION)])  # type: ignore[list-item]
    encode_resume([(POINT_OF_RING, TOKEN)])  # type: ignore[list-item]
    encode_resume([(POINT_OF_RING, SEEN)])  # type: ignore[list-item]


def test_dedupe_takes_what_its_client_has_seen() -> None:
    sessions = Sessions()
    assert sessions.known(b"c", 1, SEEN) is None
    sessions.known(b"c", 1, VERSION)  # type: ignore[arg-type]
    sessions.known(b"c", 1, TOKEN)  # type: ignore[arg-type]
    sessions.known(b"c", 1, POINT)  # type: ignore[arg-type]
    assert within_history(LastSeenIndex(first_version(3) + 9), 4) == first_version(3) + 4


def test_a_fence_is_passed_with_a_token_and_taken_at_a_version() -> None:
    fences = Fences()
    assert fences.take(b"d" * 16, VERSION, []) is None
    assert fences.pass_by(b"d" * 16, TOKEN, []) is None
    fences.take(b"e" * 16, TOKEN, [])  # type: ignore[arg-type]
    fences.pass_by(b"d" * 16, VERSION, [])  # type: ignore[arg-type]
