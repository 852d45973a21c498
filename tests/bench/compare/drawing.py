"""Plots by matplotlib as inline SVG: text stays text, nothing is fetched, lines and text take the page's colour."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from tests.bench.compare.result import EVACUATE
from tests.bench.plots import COLOURS

Lines = Mapping[str, Mapping[int, float]]

# colours and shapes that also differ for the colour-blind, and in print
_STYLES = {
    "stop": (COLOURS[2], "^", ":"),
    "suspend": (COLOURS[5], "s", "-."),
    "precopy": (COLOURS[0], "o", "--"),
    EVACUATE: (COLOURS[1], "D", "-"),
}
_ROOM = 1.3  # beside the first and the last point
_WIDTH, _HEIGHT = 5.0, 3.9  # inches: small, so that letters are large on a phone
_DECADES = 2.2  # of a logarithmic axis: with more only each power of ten is written
_LETTERS = 11.5
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": _LETTERS,
    "axes.titlesize": 12,
}
_DROP = re.compile(r'<metadata>.*?</metadata>|\sxmlns(?::\w+)?="[^"]*"|(?<=<g) id="[^"]*"', re.DOTALL)
_SIZE = re.compile(r'<svg width="[^"]*" height="[^"]*"')


def lines(title: str, unit: str, found: Lines, across: Sequence[int]) -> str:
    """A line for each method over the numbers of vTPMs; both axes are logarithmic."""
    figure, axes = _figure(title, unit)
    for method, points in found.items():
        if points:
            colour, marker, style = _STYLES[method]
            counts = sorted(points)
            heights = [points[count] for count in counts]
            axes.plot(counts, heights, color=colour, marker=marker, linestyle=style, linewidth=2, label=method)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("vTPMs")
    axes.set_xticks(list(across), [str(count) for count in across])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    heights = [height for points in found.values() for height in points.values()]
    _scale(axes, min(heights), max(heights))
    axes.set_xlim(across[0] / _ROOM, across[-1] * _ROOM)
    figure.legend(
        loc="outside lower center", frameon=False, ncols=4, columnspacing=0.9, handlelength=2.0, fontsize=_LETTERS
    )
    return _svg(figure, title)


def dots(title: str, unit: str, found: Mapping[str, Sequence[float]]) -> str:
    """A row for each name: its samples, and a line at their median."""
    figure, axes = _figure(title, "")
    for row, values in enumerate(found.values()):
        colour = COLOURS[row % len(COLOURS)]
        axes.plot(values, [row] * len(values), "o", color=colour, markersize=8, alpha=0.7)
        middle = sorted(values)[len(values) // 2]
        axes.plot([middle, middle], [row - 0.3, row + 0.3], color=colour, linewidth=2.5)
        axes.annotate(f"{middle:.2f}", (middle, row + 0.34), ha="center", va="bottom", fontsize=_LETTERS)
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(-0.6, len(found) - 0.2)
    axes.set_xlim(0.0, _ROOM * max(value for values in found.values() for value in values))
    axes.set_xlabel(unit)
    return _svg(figure, title)


def _scale(axes: Axes, low: float, high: float) -> None:
    """Some room, and as many numbers as can be read."""
    if low > 0:
        room = max(_ROOM, math.sqrt(10 * low / high))  # at least one decade: it has numbers to be read
        axes.set_ylim(low / room, high * room)
        few = high * room < low / room * 10**_DECADES
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))


def _figure(title: str, unit: str) -> tuple[Figure, Axes]:
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title)
        axes.set_ylabel(unit)
    axes.grid(alpha=0.3)
    return figure, axes


def _svg(figure: Figure, title: str) -> str:
    """For a page: as wide as there is room, without anything that names another place."""
    text = io.StringIO()
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": title}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    whole = text.getvalue()
    drawn = _DROP.sub("", whole[whole.index("<svg") :]).strip()
    drawn = drawn.replace("xlink:href", "href").replace("#000000", "currentColor")
    label = escape(title, quote=True)
    size = f'<svg width="100%" role="img" aria-label="{label}"'
    return f"<figure>{_SIZE.sub(size, drawn, count=1)}</figure>"
