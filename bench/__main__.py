"""Everything: ``make bench``. Tables to standard output, figures to ``results.json``, pictures as SVG.

Takes twenty minutes; ``--quick`` a few minutes, for figures that are less to be trusted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from bench import compare, curves, http, pictures, scaling, smoke, stages, ycsb


def machine() -> dict[str, Any]:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory = int(Path("/proc/meminfo").read_text().split()[1]) >> 20
    return {
        "cores": os.cpu_count(),
        "model": model,
        "memory_gib": memory,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def draw(found: dict[str, Any], folder: Path) -> None:
    closed = found["compare"]["closed"]
    rates = {n: {p: v["per_second"] for p, v in by.items()} for n, by in closed.items()}
    pictures.bars(
        folder / "throughput-puts.svg",
        "Durable, replicated puts",
        "per second",
        {n: r for n, r in rates.items() if n.startswith("put")},
    )
    pictures.bars(
        folder / "throughput-gets.svg",
        "Linearizable gets",
        "per second",
        {n: r for n, r in rates.items() if n.startswith("get")},
    )
    cost = {n: {p: v["server_us"] for p, v in by.items()} for n, by in closed.items()}
    pictures.bars(
        folder / "server-cpu-puts.svg",
        "Server CPU of a put, all processes",
        "µs",
        {n: r for n, r in cost.items() if n.startswith("put")},
    )
    pictures.bars(
        folder / "server-cpu-gets.svg",
        "Server CPU of a get, all processes",
        "µs",
        {n: r for n, r in cost.items() if n.startswith("get")},
    )
    workloads = {w: {way: v["per_second"] for way, v in ways.items()} for w, ways in found["ycsb"].items()}
    pictures.bars(folder / "ycsb.svg", "YCSB, 64 tasks", "operations per second", workloads)
    offered = found["curves"]["offered"]
    for q in ("p50_ms", "p99_ms"):
        series = {p: [(r["rate"], r[q]) for r in rows] for p, rows in offered.items() if rows}
        pictures.lines(
            folder / f"offered-{q[:3]}.svg",
            f"Puts, {q[:3]} against offered load (open loop)",
            "puts offered per second",
            "ms",
            series,
            log_y=True,
        )
    sizes = found["curves"]["sizes"]
    series = {k: [(r["bytes"], r[f"{k}_server_us"]) for r in sizes] for k in ("put", "get")}
    pictures.lines(
        folder / "value-size.svg",
        "Server CPU against the size of a value",
        "bytes",
        "µs per operation",
        series,
        log_x=True,
        log_y=True,
    )
    recovery = found["curves"]["recovery"]
    pictures.lines(
        folder / "recovery.svg",
        "From start to serving, after SIGKILL",
        "MiB of log",
        "s",
        {"a node": [(r["log_mib"], r["seconds"]) for r in recovery]},
    )
    memory = found["curves"]["memory"]
    pictures.lines(
        folder / "memory.svg",
        "One node, records of 100 bytes",
        "records",
        "MiB",
        {
            "its own memory": [(r["records"], r["anonymous_mib"]) for r in memory],
            "state on disk": [(r["records"], r["state_mib"]) for r in memory],
        },
    )
    quota = found["scaling"].get("quota")
    if quota:
        series = {k: [(r["cells"], r[f"{k}_per_second"]) for r in quota] for k in ("put", "get")}
        series |= {
            f"{k}, linear": [(r["cells"], r["cells"] * quota[0][f"{k}_per_second"]) for r in quota]
            for k in ("put", "get")
        }
        pictures.lines(
            folder / "scaling.svg",
            "Throughput against cells, each held to a share of a core",
            "cells",
            "per second",
            series,
            log_y=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench-results"))
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    turns, seconds = (1, 1.0) if args.quick else (3, 3.0)
    found: dict[str, Any] = {"machine": machine(), "at": time.strftime("%Y-%m-%d %H:%M")}
    for name, work, table in (
        ("smoke", smoke.measure, smoke.table),
        ("stages", stages.measure, stages.table),
        ("compare", lambda: compare.run(compare.PEERS, turns, seconds), compare.tables),
        ("ycsb", lambda: ycsb.run(seconds), ycsb.tables),
        ("http", lambda: http.run(turns, seconds), http.tables),
        ("curves", lambda: curves.run(seconds, 0.1 if args.quick else 1.0, {"offered", "sizes", "recovery", "memory"}), curves.tables),
        ("scaling", lambda: scaling.run(2 * seconds, {"quota", "cost", "control"}), scaling.tables),
    ):  # fmt: skip
        print(f"\n## {name}\n", flush=True)
        found[name] = work()
        print()
        table(found[name])
        (args.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, args.out)
    print(f"\nfigures in {args.out}/results.json, pictures beside it")


if __name__ == "__main__":
    main()
