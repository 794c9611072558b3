"""``cellctl import tree``: a real folder as records, many in flight."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cellctl.connect import Where, cluster_options, make_client
from cellctl.output import note
from metastore.client import AsyncNamespace
from metastore.errors import InvalidRequest, MetastoreError
from metastore.keys import encode_key

MAX_REPORTED = 20


@click.group("import")
def import_() -> None:
    """Bring data in."""


def describe(path: bytes, info: os.stat_result) -> bytes:
    """A file's record: type, size, mode, mtime and link target as JSON."""
    mode = info.st_mode
    kind = (
        "file"
        if stat.S_ISREG(mode)
        else "dir"
        if stat.S_ISDIR(mode)
        else "link"
        if stat.S_ISLNK(mode)
        else "other"
    )
    record: dict[str, object] = {
        "type": kind,
        "size": info.st_size,
        "mode": f"{stat.S_IMODE(mode):04o}",
        "mtime_ns": info.st_mtime_ns,
    }
    if kind == "link":
        record["target"] = os.fsdecode(os.readlink(path)).encode(errors="replace").decode()
    return orjson.dumps(record)


def walk(top: Path, skipped: Counter[str]) -> Iterator[tuple[str, bytes]]:
    """``(key, record)`` of everything under ``top``, itself too; links are not followed. Keys are
    absolute paths without the leading ``/``. What cannot be read is counted in ``skipped``."""
    todo = [os.fsencode(top)]
    yield from _one(todo[0], os.lstat(todo[0]), skipped)
    while todo:
        folder = todo.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    try:
                        info = entry.stat(follow_symlinks=False)
                    except OSError as e:
                        skipped[e.strerror or "cannot be read"] += 1
                        continue
                    yield from _one(entry.path, info, skipped)
                    if stat.S_ISDIR(info.st_mode):
                        todo.append(entry.path)
        except OSError as e:
            skipped[e.strerror or "cannot be read"] += 1


def _one(path: bytes, info: os.stat_result, skipped: Counter[str]) -> Iterator[tuple[str, bytes]]:
    try:
        key = path.lstrip(b"/").decode()
        if key:
            encode_key(key)
            yield key, describe(path, info)
    except UnicodeDecodeError:
        skipped["name is not UTF-8"] += 1
    except InvalidRequest:
        skipped["path is longer than a key may be"] += 1
    except OSError as e:
        skipped[e.strerror or "cannot be read"] += 1


@import_.command()
@cluster_options
@click.option("--namespace", "-n", default="files", show_default=True, help="Namespace.")
@click.option(
    "--concurrency", type=click.IntRange(1, 2048), default=256, show_default=True, help="Writes in flight."
)
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
def tree(where: Where, namespace: str, concurrency: int, path: Path) -> None:
    """Write a record for every file and folder under PATH.

    Example: cellctl import tree /usr/share/doc --namespace files
    """
    sys.exit(asyncio.run(_import(where, namespace, concurrency, path.absolute())))


async def _import(where: Where, namespace: str, concurrency: int, top: Path) -> int:
    skipped: Counter[str] = Counter()
    failed: list[str] = []
    tty = sys.stderr.isatty()
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
    )
    progress = Progress(*columns, console=Console(stderr=True), disable=not tty, refresh_per_second=4)
    started = time.monotonic()
    async with make_client(where) as client:
        with progress:
            task = progress.add_task(f"import {top}", total=None, rate="")
            done = await _run(
                client.namespace(namespace), walk(top, skipped), concurrency, failed, progress, task
            )
    took = time.monotonic() - started
    note(f"{done} records in {took:.1f} s ({done / max(took, 1e-9):,.0f} per second)")
    for reason, count in skipped.most_common():
        note(f"skipped {count}: {reason}")
    for line in failed[:MAX_REPORTED]:
        note(f"failed: {line}")
    if len(failed) > MAX_REPORTED:
        note(f"… and {len(failed) - MAX_REPORTED} more failed")
    return 2 if failed else 1 if skipped else 0


async def _run(
    ns: AsyncNamespace,
    items: Iterator[tuple[str, bytes]],
    concurrency: int,
    failed: list[str],
    progress: Progress,
    task: object,
) -> int:
    """``concurrency`` workers that share one walk; memory does not grow with the tree."""
    done = 0
    began = time.monotonic()

    async def worker() -> None:
        nonlocal done
        for key, record in items:
            try:
                await ns.put(key, record, content_type="application/json")
                done += 1
            except MetastoreError as e:
                failed.append(f"{key}: {e.message}")
                if len(failed) > 1000:
                    return
            if done % 500 == 0:
                rate = f"{done / max(time.monotonic() - began, 1e-9):,.0f}/s"
                progress.update(task, completed=done, rate=rate)  # type: ignore[arg-type]

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    progress.update(task, completed=done, total=done)  # type: ignore[arg-type]
    return done
