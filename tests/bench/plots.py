"""Plots as inline SVG. Colours that colour-blind people can tell apart; text takes the page's colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tests.bench.stats import Summary

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
_WIDTH, _LEFT, _RIGHT = 760, 200, 90
_ROW, _TOP, _AXIS = 24, 26, 26
_GRID = "stroke:currentColor;stroke-opacity:.18"


@dataclass(frozen=True, slots=True)
class Range:
    """A row: its smallest sample, p10, median, p90."""

    label: str
    summary: Summary
    colour: int = 0


@dataclass(frozen=True, slots=True)
class Bar:
    """A row of segments, one after the other: (name, value)."""

    label: str
    segments: tuple[tuple[str, float], ...]


def ranges(title: str, rows: Sequence[Range], unit: str = "us") -> str:
    """A dot at each median, a thick line from p10 to p90, a tick at the minimum."""
    scale = _Scale(max(row.summary.p90 for row in rows))
    lines = []
    for number, row in enumerate(rows):
        y, s, colour = _y(number), row.summary, COLOURS[row.colour % len(COLOURS)]
        x10, x50, x90, low = (scale.x(value) for value in (s.p10, s.median, s.p90, s.minimum))
        lines.append(_label(row.label, y))
        lines.append(f'<path d="M{low:.1f} {y - 5}V{y + 5}M{low:.1f} {y}H{x10:.1f}" stroke="{colour}" fill="none"/>')
        lines.append(f'<path d="M{x10:.1f} {y}H{x90:.1f}" stroke="{colour}" stroke-width="7" stroke-opacity=".45"/>')
        lines.append(f'<circle cx="{x50:.1f}" cy="{y}" r="4.5" fill="{colour}"/>')
        lines.append(f'<text x="{x90 + 8:.1f}" y="{y + 4}">{number_text(s.median)}</text>')
    return _svg(title, unit, scale, lines, len(rows))


def stacked(title: str, bars: Sequence[Bar], unit: str = "us") -> str:
    """Segments of the same name have the same colour; below stands which."""
    names = list(dict.fromkeys(name for bar in bars for name, _ in bar.segments))
    scale = _Scale(max(sum(value for _, value in bar.segments) for bar in bars))
    lines = []
    for number, bar in enumerate(bars):
        y, done = _y(number), 0.0
        lines.append(_label(bar.label, y))
        for name, value in bar.segments:
            x, width = scale.x(done), scale.x(value) - scale.x(0)
            tip = f"<title>{escape(name)}: {number_text(value)} {unit}</title>"
            fill = COLOURS[names.index(name) % len(COLOURS)]
            lines.append(f'<rect x="{x:.1f}" y="{y - 8}" width="{width:.1f}" height="16" fill="{fill}">{tip}</rect>')
            done += value
        lines.append(f'<text x="{scale.x(done) + 6:.1f}" y="{y + 4}">{number_text(done)}</text>')
    return _svg(title, unit, scale, [*lines, *_legend(names, len(bars))], len(bars), extra=22)


def number_text(value: float) -> str:
    """Three digits or so, thousands apart."""
    return f"{value:.1f}" if abs(value) < 99.95 else f"{value:,.0f}".replace(",", "\u202f")


def ticks(top: float) -> list[float]:
    """From zero to at least ``top``: four to seven steps of 1, 2 or 5 times a power of ten."""
    rough = max(top, 1e-9) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [step * n for n in range(math.ceil(top / step) + 1)]


class _Scale:
    """Values to x."""

    def __init__(self, top: float) -> None:
        self.ticks = ticks(top)
        self._factor = (_WIDTH - _LEFT - _RIGHT) / self.ticks[-1]

    def x(self, value: float) -> float:
        return _LEFT + value * self._factor


def _y(row: int) -> int:
    return _TOP + _ROW * row + _ROW // 2


def _label(text: str, y: int) -> str:
    return f'<text x="{_LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(text)}</text>'


def _legend(names: Sequence[str], rows: int) -> list[str]:
    y, x = _TOP + _ROW * rows + _AXIS + 14, 10
    lines = []
    for number, name in enumerate(names):
        fill = COLOURS[number % len(COLOURS)]
        lines.append(f'<rect x="{x}" y="{y - 10}" width="11" height="11" fill="{fill}"/>')
        lines.append(f'<text x="{x + 16}" y="{y}">{escape(name)}</text>')
        x += 34 + 7 * len(name)
    return lines


def _svg(title: str, unit: str, scale: _Scale, lines: Sequence[str], rows: int, extra: int = 0) -> str:
    bottom = _TOP + _ROW * rows
    grid = []
    for tick in scale.ticks:
        x = scale.x(tick)
        grid.append(f'<path d="M{x:.1f} {_TOP}V{bottom}" style="{_GRID}"/>')
        grid.append(
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{number_text(tick).removesuffix(".0")}</text>'
        )
    head = f'<text x="0" y="14" font-weight="600">{escape(title)} ({unit})</text>'
    size = f'viewBox="0 0 {_WIDTH} {bottom + _AXIS + extra}" width="{_WIDTH}"'
    return f'<svg {size} role="img" aria-label="{escape(title)}">{head}{"".join(grid)}{"".join(lines)}</svg>'
