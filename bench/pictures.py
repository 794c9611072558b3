"""Small pictures as SVG, made by hand: lines over a plane, bars beside each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 400, 80, 40, 160, 50
COLOURS = ("#1f6feb", "#d1242f", "#2da44e", "#bf8700", "#8250df", "#57606a")

Points = Sequence[tuple[float, float]]


def _ticks(low: float, high: float, log: bool) -> list[float]:
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        return [10.0**e for e in range(first, last + 1) if low <= 10.0**e <= high]
    span = high - low or 1
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 6)
    return [step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _name(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e4 else f"{value:g}"


def lines(
    path: Path,
    title: str,
    x: str,
    y: str,
    series: Mapping[str, Points],
    *,
    log_x: bool = False,
    log_y: bool = False,
) -> None:
    """One line with its dots for each of ``series``."""
    points = [p for s in series.values() for p in s]
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    low_x, high_x = min(xs), max(xs)
    low_y, high_y = (min(ys) if log_y else 0.0), max(ys) * (1.5 if log_y else 1.08)

    def place(value: float, low: float, high: float, log: bool) -> float:
        if log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return (value - low) / ((high - low) or 1)

    def at(px: float, py: float) -> tuple[float, float]:
        return (
            LEFT + place(px, low_x, high_x, log_x) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - place(py, low_y, high_y, log_y) * (HEIGHT - TOP - BOTTOM),
        )

    out = _begin(title, x, y)
    for tick in _ticks(low_x, high_x, log_x):
        px, _ = at(tick, low_y or 1)
        out.append(f'<text x="{px:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_name(tick)}</text>')
    for tick in _ticks(low_y or 1e-9, high_y, log_y) if log_y else _ticks(0, high_y, False):
        _, py = at(low_x, tick)
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py:.1f}" y2="{py:.1f}" stroke="#d0d7de"/>')
        out.append(f'<text x="{LEFT - 6}" y="{py + 4:.1f}" text-anchor="end">{_name(tick)}</text>')
    for number, (name, dots) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [at(*dot) for dot in dots]
        way = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
        out.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>' for px, py in places]
        _legend(out, number, name, colour)
    _end(path, out)


def bars(path: Path, title: str, y: str, groups: Mapping[str, Mapping[str, float]]) -> None:
    """A group of bars for each of ``groups``, a bar for each of its names."""
    names = list(dict.fromkeys(n for g in groups.values() for n in g))
    high = max(v for g in groups.values() for v in g.values()) * 1.08
    out = _begin(title, "", y)
    for tick in _ticks(0, high, False):
        py = HEIGHT - BOTTOM - tick / high * (HEIGHT - TOP - BOTTOM)
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py:.1f}" y2="{py:.1f}" stroke="#d0d7de"/>')
        out.append(f'<text x="{LEFT - 6}" y="{py + 4:.1f}" text-anchor="end">{_name(tick)}</text>')
    wide = (WIDTH - LEFT - RIGHT) / len(groups)
    for g, (group, values) in enumerate(groups.items()):
        left = LEFT + g * wide
        out.append(
            f'<text x="{left + wide / 2:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(group)}</text>'
        )
        for n, name in enumerate(names):
            if name in values:
                tall = values[name] / high * (HEIGHT - TOP - BOTTOM)
                bar = wide * 0.8 / len(names)
                out.append(
                    f'<rect x="{left + wide * 0.1 + n * bar:.1f}" y="{HEIGHT - BOTTOM - tall:.1f}" width="{bar:.1f}" '
                    f'height="{tall:.1f}" fill="{COLOURS[n % len(COLOURS)]}"/>'
                )
    for n, name in enumerate(names):
        _legend(out, n, name, COLOURS[n % len(COLOURS)])
    _end(path, out)


def _begin(title: str, x: str, y: str) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">{escape(x)}</text>',
        f'<text transform="translate(18 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(y)}</text>',
    ]


def _legend(out: list[str], number: int, name: str, colour: str) -> None:
    y = TOP + 16 * number
    out.append(f'<rect x="{WIDTH - RIGHT + 12}" y="{y}" width="10" height="10" fill="{colour}"/>')
    out.append(f'<text x="{WIDTH - RIGHT + 28}" y="{y + 10}">{escape(name)}</text>')


def _end(path: Path, out: list[str]) -> None:
    path.write_text("\n".join([*out, "</svg>", ""]))
