"""The report: one page, a table and a picture per scenario."""

from __future__ import annotations

import html
from collections import defaultdict

from tests.chaos.runner import PARTITIONS, Result

WIDTH, LATENCY_HEIGHT, LANE = 960, 170, 9
COLOURS = {"c1n1": "#4c78a8", "c1n2": "#f58518", "c1n3": "#54a24b"}
MAX_DOTS = 4000


def picture(result: Result) -> str:
    """Latency of every operation (red: failed), faults as lines, and who leads each partition."""
    ops = sorted(result.history, key=lambda o: o.began)
    if not ops:
        return ""
    seconds = max(1.0, (max(o.ended for o in ops) - result.started_ns) / 1e9)

    def x(at: float) -> float:
        return round(40 + max(0.0, at) / seconds * (WIDTH - 50), 1)

    def y(latency_ms: float) -> float:
        """Logarithmic, 0.1 ms to 10 s."""
        import math

        share = (math.log10(max(0.1, min(latency_ms, 10_000))) + 1) / 5
        return round(LATENCY_HEIGHT - share * (LATENCY_HEIGHT - 30), 1)

    height = LATENCY_HEIGHT + 10 + PARTITIONS * LANE + 6
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">']
    for ms, label in ((0.1, "0.1 ms"), (1, "1"), (10, "10"), (100, "100"), (1000, "1 s"), (10_000, "10 s")):
        parts.append(f'<text x="0" y="{y(ms) + 3}">{label}</text>')
        parts.append(f'<line class="grid" x1="40" x2="{WIDTH}" y1="{y(ms)}" y2="{y(ms)}"/>')
    failed = [o for o in ops if o.outcome in ("none", "unknown")]
    fine = [o for o in ops if o.outcome not in ("none", "unknown")]
    for o in [*fine[:: len(fine) // MAX_DOTS + 1], *failed]:
        bad = o.outcome in ("none", "unknown")
        at, latency = (o.ended - result.started_ns) / 1e9, (o.ended - o.began) / 1e6
        parts.append(
            f'<circle class="{"bad" if bad else o.kind}" cx="{x(at)}" cy="{y(latency)}" r="{2.2 if bad else 1.1}"/>'
        )
    for number, (at, what) in enumerate(result.marks):
        parts.append(f'<line class="mark" x1="{x(at)}" x2="{x(at)}" y1="14" y2="{height}"/>')
        parts.append(f'<text x="{x(at) + 2}" y="{10 + 9 * (number % 2)}">{html.escape(what)}</text>')
    lanes: dict[int, list[tuple[float, str]]] = defaultdict(list)
    for at, node, p, _ in result.reigns:
        lanes[p].append((at, node))
    for p, reigns in lanes.items():
        top = LATENCY_HEIGHT + 10 + p * LANE
        for i, (at, node) in enumerate(reigns):
            until = reigns[i + 1][0] if i + 1 < len(reigns) else seconds
            wide = max(1.0, x(until) - x(at))
            colour = COLOURS.get(node, "#999")
            parts.append(
                f'<rect x="{x(at)}" y="{top}" width="{wide:.1f}" height="{LANE - 2}" fill="{colour}"><title>partition {p}: {node}</title></rect>'
            )
    parts.append("</svg>")
    return "".join(parts)


STYLE = """
body{font:14px/1.45 system-ui,sans-serif;max-width:1000px;margin:2em auto;color:#222}
table{border-collapse:collapse;width:100%}td,th{padding:.25em .6em;border-bottom:1px solid #ddd;text-align:left}
svg text{font:9px sans-serif;fill:#555}.grid{stroke:#eee}.mark{stroke:#b44;stroke-dasharray:3 2}
.read{fill:#7aa6c2}.put{fill:#3b7d3b}.delete{fill:#8a6fae}.txn{fill:#c08a2d}.bad{fill:#d62728}.no{color:#d62728;font-weight:600}
pre{white-space:pre-wrap;background:#fbecec;padding:.6em}
"""


def page(results: list[Result], skipped: list[str]) -> str:
    """The whole report as one HTML page without anything from elsewhere."""
    rows, sections = [], []
    for r in results:
        name = html.escape(r.scenario.name)
        errors = ", ".join(f"{k} {v}" for k, v in sorted(r.errors.items())) or "none"
        verdict = '<span class="no">broken</span>' if r.problems else "kept"
        rows.append(
            f'<tr><td><a href="#{name}">{name}</a><td>{html.escape(r.scenario.says)}<td>{len(r.history)}<td>{errors}'
            f"<td>{r.outage_s:.2f}<td>{r.back_s:.2f}<td>{verdict}"
        )
        wrong = f"<pre>{html.escape(chr(10).join(r.problems))}</pre>" if r.problems else ""
        sections.append(
            f'<h2 id="{name}">{name}</h2><p>{html.escape(r.scenario.says)}</p>{wrong}{picture(r)}'
        )
    legend = " ".join(f'<span style="color:{c}">■ {n}</span>' for n, c in COLOURS.items())
    left_out = f"<p>Not run here: {html.escape(', '.join(skipped))}.</p>" if skipped else ""
    return (
        f"<!doctype html><meta charset=utf-8><title>Chaos report</title><style>{STYLE}</style><h1>Chaos report</h1>"
        "<p>Each scenario: one cell of three nodes, 12 tasks over 16 keys in 8 partitions, and 6 over folders with transactions, counters, locks with fences, "
        "listings and records that run out. Judged: linearizable, every "
        "acknowledged write present, no failed write seen, versions unique, epochs owned once, replicas equal, "
        "service back within 15 s of healing.</p>"
        "<table><tr><th>scenario<th>what happens<th>operations<th>failed<th>longest outage of a key, s<th>back after healing, s<th>promises</tr>"
        f"{''.join(rows)}</table>{left_out}<p>Leaders, one lane a partition: {legend}. Dots: latency of reads, puts, deletes; "
        f"red: failed.</p>{''.join(sections)}"
    )
