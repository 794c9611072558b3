"""What a real node's core heard is written to a file, and played again: the same comes of it."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from metastore import replay
from metastore.clock import now_ns
from metastore.core import events as ev
from metastore.core import journal as journal_module
from metastore.core.recording import unpack
from metastore.errors import Overloaded
from metastore.node.http import serve_http
from metastore.node.recorder import FOLDER, MAX_FILES, Asked, Recorder
from tests.unit.node.single import Single


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def work(single: Single, count: int) -> None:
    async with single.client() as client:
        ns = client.namespace("n")
        for n in range(count):
            await ns.put(f"k{n % 7}", bytes(100))
            assert await ns.get(f"k{n % 7}") is not None


def files(single: Single) -> list[Path]:
    return sorted((single.folder / FOLDER).glob("*"))


@pytest.mark.parametrize("most", [60, 8192])
async def test_a_running_node_sends_what_it_heard(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the beginning, or from a checkpoint in the middle."""
    monkeypatch.setattr(journal_module, "MAX_RECORDS", most)
    port = free_port()
    async with Single(tmp_path, http_listen=f"127.0.0.1:{port}") as single:
        http = await serve_http(single.node)
        await work(single, 40)
        url = f"http://127.0.0.1:{port}/v1/recording"

        def fetch() -> bytes:
            with urllib.request.urlopen(url, timeout=60) as answer:
                raw: bytes = answer.read()
                return raw

        raw = await asyncio.to_thread(fetch)
        await http.stop()
    recording = unpack(raw)
    assert (len(recording.halves), recording.node) == (2 if most == 60 else 1, "f")
    player = replay.Player()
    kinds = {type(played.event) for played in player.play(recording)}
    assert player.difference is None
    assert {ev.Propose, ev.Tick} <= kinds
    if most > 60:
        assert {ev.Opened, ev.ConfigSeen} <= kinds


async def test_a_recording_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Single(tmp_path) as single:
        begun, go = asyncio.Event(), asyncio.Event()

        async def packs(*_: Any) -> bytes:
            begun.set()
            await go.wait()
            return b"packed"

        monkeypatch.setattr(asyncio, "to_thread", packs)
        asked = Asked(single.node)
        first = asyncio.ensure_future(asked.pack())
        await begun.wait()
        with pytest.raises(Overloaded, match="packed already"):
            await asked.pack()
        go.set()
        assert await first == b"packed"


async def test_a_node_that_stops_writes_what_led_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Single(tmp_path) as single:
        node, recorder = single.node, Recorder(single.node)
        node.halt.on_failed = recorder.write_soon  # as ``main`` does
        await work(single, 10)
        try:
            node.core.handle(now_ns(), ev.SnapshotInstalled(0, 1, 1))
        except AssertionError as e:
            node.halt.fail_stop(e)
        await asyncio.to_thread(recorder.wait)
        [file] = files(single)
        assert replay.main([str(file)]) == 0
        shown = capsys.readouterr().out
        assert "InvariantBroken: R17" in shown.splitlines()[0]
        assert "!! InvariantBroken: R17" in shown
        assert "the same came of them" in shown


async def test_the_newest_files_are_kept(tmp_path: Path) -> None:
    async with Single(tmp_path) as single:
        recorder = Recorder(single.node)
        folder = single.folder / FOLDER
        folder.mkdir()
        for n in range(12):
            (folder / f"20200101T0000{n:02}-000.msrec").write_bytes(b"old")
        (folder / "20200101T000000-000.partial").write_bytes(b"half")
        recorder.write_soon("a test")
        await asyncio.to_thread(recorder.wait)
        kept = files(single)
        assert len(kept) == MAX_FILES
        assert [path.read_bytes() for path in kept[:-1]] == [b"old"] * (MAX_FILES - 1)
        assert unpack(kept[-1].read_bytes()).why == "a test"


async def test_a_file_that_cannot_be_written_harms_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Single(tmp_path) as single:
        (single.folder / FOLDER).write_text("in the way")
        recorder = Recorder(single.node)
        recorder.write_soon("a test")
        await asyncio.to_thread(recorder.wait)
        assert "cannot be written" in caplog.text
        await work(single, 1)
