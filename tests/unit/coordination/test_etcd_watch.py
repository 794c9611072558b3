"""What a watch of etcd makes of answers that are rare: parts, streams that choke, members that lag, silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from aetcd import rpc

from metastore.coordination.etcd import EtcdCoordinator
from metastore.coordination.interface import Change, Known
from tests.unit.coordination.scripted_etcd import CLUSTER, Member, Script, answers_progress

QUIET_S = 0.05


class Seen:
    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.deliveries: list[list[str]] = []

    def __call__(self, revision: int, changes: list[Change]) -> None:
        self.deliveries.append([change.key for change in changes])
        for change in changes:
            assert change.new is not None
            self.content[change.key] = change.new.value


@asynccontextmanager
async def etcd(
    *members: Member, known_revision: int = 0, known: Known | None = None
) -> AsyncIterator[EtcdCoordinator]:
    for member in members:
        await member.server.start()
    coordinator = EtcdCoordinator([m.endpoint for m in members], known or Known(revision=known_revision))
    try:
        yield coordinator
    finally:
        await coordinator.close()
        for member in members:
            await member.server.stop(None)


async def until(what: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not what():
            await asyncio.sleep(0.005)


def member(script: Script, revision: int = 10) -> Member:
    return Member({b"/w/a": (b"old", 5)}, revision, script)


async def test_parts_of_one_response_are_one_change_or_none() -> None:
    """A stream that breaks between two parts has delivered neither: the next begins before both."""
    begun: list[int] = []

    async def script(m: Member, created: Any, requests: AsyncIterator[Any], context: Any) -> None:
        assert created.fragment
        begun.append(created.start_revision)
        await context.write(m.events([b"/w/b"], 11, fragment=True))
        if len(begun) == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "it breaks")
        await context.write(m.events([b"/w/c"], 11, fragment=True))
        await context.write(m.events([b"/w/d"], 11))
        await answers_progress(m, created, requests, context)

    seen = Seen()
    async with etcd(member(script)) as coordinator:
        coordinator.watch("/w/", seen, QUIET_S)
        await until(lambda: len(seen.content) == 4)
        assert begun == [11, 11]
        assert seen.deliveries == [["/w/a"], ["/w/b", "/w/c", "/w/d"]]


async def test_streams_that_choke_are_passed_over_by_a_reading() -> None:
    """Whatever it is that lies in between: twice in vain, and the prefix is read again."""

    async def script(m: Member, created: Any, requests: AsyncIterator[Any], context: Any) -> None:
        if created.start_revision <= 20:
            m.content[b"/w/b"], m.revision, m.own_revision = (b"large", 20), 20, 20
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max")
        await answers_progress(m, created, requests, context)

    seen, one = Seen(), member(script)
    async with etcd(one) as coordinator:
        watch = coordinator.watch("/w/", seen, QUIET_S)
        await until(lambda: seen.content.get("/w/b") == b"large")
        heard = watch._heard_ns
        await until(lambda: watch._heard_ns > heard)
        assert (one.streams, one.readings) == (3, 2)


async def test_after_a_compaction_the_prefix_is_read_again() -> None:
    """What was there in between is told by a reading only; no stream would ever bring it."""
    begun: list[int] = []

    async def script(m: Member, created: Any, requests: AsyncIterator[Any], context: Any) -> None:
        begun.append(created.start_revision)
        if len(begun) == 1:
            m.content[b"/w/b"], m.revision, m.own_revision = (b"missed", 20), 20, 20
            await context.write(rpc.WatchResponse(header=m.header(), canceled=True, compact_revision=15))
        else:
            await answers_progress(m, created, requests, context)

    seen = Seen()
    async with etcd(member(script)) as coordinator:
        coordinator.watch("/w/", seen, QUIET_S)
        await until(lambda: len(begun) == 2)
        assert seen.content["/w/b"] == b"missed"
        assert begun == [11, 21]


async def test_a_rebuilt_etcd_is_asked_in_its_own_revisions() -> None:
    """R13: everybody here counts them from above all that the lost one had. And a member that is cut off from the others
    is to say so."""
    asked: list[Any] = []
    revisions: list[int] = []

    async def script(m: Member, created: Any, requests: AsyncIterator[Any], context: Any) -> None:
        asked.append((created.start_revision, dict(context.invocation_metadata()).get("hasleader")))
        await context.write(m.events([b"/w/b"], 11))
        await answers_progress(m, created, requests, context)

    def note(revision: int, changes: list[Change]) -> None:
        revisions.extend([revision, *(c.new.mod_revision for c in changes if c.new is not None)])

    async with etcd(member(script), known=Known(CLUSTER, 1000, 1000, 1)) as coordinator:
        coordinator.watch("/w/", note, QUIET_S)
        await until(lambda: len(revisions) == 4)
        assert revisions == [1010, 1005, 1011, 1011]
        assert asked == [(11, "true")]


async def test_a_member_that_lags_says_nothing_against_etcd() -> None:
    """R13: its revision is lower than what another told. It is named and passed over."""
    lagging, well = member(answers_progress, 100), member(answers_progress, 100)
    lagging.own_revision = 40
    seen = Seen()
    async with etcd(lagging, well, known_revision=100) as coordinator:
        watch = coordinator.watch("/w/", seen, QUIET_S)
        await until(lambda: well.streams == 1 and watch.silent_s < 1)
        assert not coordinator.untrusted
        assert f"member {lagging.endpoint} of etcd lags: it is at revision 40" in coordinator.trouble
        lagging.own_revision = 100
        await well.server.stop(None)
        await until(lambda: lagging.streams > 1 and not coordinator.trouble)


async def test_etcd_that_went_back_is_told_from_a_member_that_lags() -> None:
    """R13: a reading by a majority is behind too."""

    async def goes_back(m: Member, created: Any, requests: AsyncIterator[Any], context: Any) -> None:
        m.revision = m.own_revision = 40
        await context.abort(grpc.StatusCode.UNAVAILABLE, "restored")

    async with etcd(member(goes_back, 100)) as coordinator:
        coordinator.watch("/w/", Seen(), QUIET_S)
        await until(lambda: coordinator.untrusted)
        assert "went back from 100 to 40" in coordinator.trouble


async def test_why_a_watch_is_refused_is_told() -> None:
    async def refuses(m: Member, created: Any, requests: AsyncIterator[Any], context: Any) -> None:
        await context.write(
            rpc.WatchResponse(header=m.header(), canceled=True, cancel_reason="rpc error: permission denied")
        )

    one = member(refuses)
    async with etcd(one) as coordinator:
        watch = coordinator.watch("/w/", Seen(), QUIET_S)
        await until(lambda: "does not let this user" in coordinator.trouble)
        one.script = answers_progress
        await until(lambda: not coordinator.trouble and watch.silent_s < 1)


@pytest.mark.parametrize("answers", [True, False])
async def test_silence_is_no_news_only_when_that_is_said(answers: bool) -> None:
    async def silent(m: Member, created: Any, requests: AsyncIterator[Any], context: Any) -> None:
        async for _ in requests:
            pass

    one = member(answers_progress if answers else silent)
    async with etcd(one) as coordinator:
        watch = coordinator.watch("/w/", Seen(), QUIET_S)
        await watch.ready.wait()
        if answers:
            before = watch._heard_ns
            await until(lambda: watch._heard_ns > before)
            assert one.streams == 1
        else:
            await until(lambda: watch.silent_s > 1)
