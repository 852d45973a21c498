"""What a reader would object to in a page of the benchmarks, as a browser has laid it out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

SMALLEST = 11.0  # CSS px of text
_CONTRAST = 4.5, 3.0  # of text, of what is drawn (WCAG 2.2, 1.4.3 and 1.4.11)
_PLOT = 250, 150  # CSS px
_HALF = 0.5  # px: rounding

# everything at once: boxes in CSS px of the window
MEASURE = """(() => {
  const box = (e) => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
  const scale = (e) => { const m = e.getScreenCTM(); return Math.hypot(m.c, m.d); };
  const size = (e) => parseFloat(getComputedStyle(e).fontSize) * (e.ownerSVGElement ? scale(e) : 1);
  const width = document.documentElement.clientWidth;
  const seen = (e) => { const r = e.getBoundingClientRect(); return r.width + r.height > 0; };
  const own = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  const shown = [...document.body.querySelectorAll('*')].filter((e) => !/^(style|script)$/i.test(e.tagName));
  const canvas = document.createElement('i');
  canvas.style.color = 'Canvas';
  document.body.append(canvas);
  const background = getComputedStyle(canvas).color;
  canvas.remove();
  const written = shown.filter(own);
  const torn = [];
  for (const e of written.filter((e) => !e.ownerSVGElement)) {
    for (const node of [...e.childNodes].filter((n) => n.nodeType === 3)) {
      for (const word of node.data.matchAll(/[^\\s/-]{2,20}/g)) {
        const range = document.createRange();
        range.setStart(node, word.index);
        range.setEnd(node, word.index + word[0].length);
        if (range.getClientRects().length > 1) torn.push(word[0]);
      }
    }
  }
  const upright = (e) => !/rotate\\(-?[1-9]/.test(e.getAttribute('transform') || '');
  return {
    screen: screen.width, inner: width, scroll: document.documentElement.scrollWidth, background,
    resources: performance.getEntriesByType('resource').length, torn,
    wide: shown.filter((e) => !e.closest('.scroll table') && !e.closest('pre') && seen(e)
      && (box(e)[2] > width + .5 || box(e)[0] < -.5)).map((e) => e.tagName),
    texts: written.map((e) => [e.textContent.trim().slice(0, 40), size(e),
      getComputedStyle(e)[e.ownerSVGElement ? 'fill' : 'color']]),
    plots: [...document.querySelectorAll('svg')].map((svg) => ({
      label: svg.getAttribute('aria-label') || '', box: box(svg),
      texts: [...svg.querySelectorAll('text')].filter(upright).map((e) => [e.textContent, box(e)]),
      sideways: [...svg.querySelectorAll('text')].filter((e) => !upright(e)).map((e) => [e.textContent, box(e)]),
      colours: [...svg.querySelectorAll('path, use')].filter(seen).map((e) => getComputedStyle(e))
        .filter((s) => s.stroke !== 'none' && s.strokeOpacity > .5 && s.opacity > .5)
        .map((s) => s.stroke).filter((each) => each !== getComputedStyle(svg).color),
    })),
  };
})()"""

Measured = dict[str, Any]
Box = Sequence[float]


def flaws(page: Measured, plots: Sequence[str]) -> list[str]:
    """All; ``plots``: the titles of those that the page must have."""
    found = [*_missing(page, plots), *_width(page), *_letters(page)]
    for plot in page["plots"]:
        found += [f"{plot['label']}: {text}" for text in _plot(plot)]
    return [*found, *_colours(page)]


def _missing(page: Measured, plots: Sequence[str]) -> Iterator[str]:
    there = [plot["label"] for plot in page["plots"]]
    if there != list(plots):
        yield f"plots: {there}, not {list(plots)}"
    if page["resources"]:
        yield f"{page['resources']} resources are fetched"


def _width(page: Measured) -> Iterator[str]:
    if page["inner"] > page["screen"]:
        yield f"laid out for {page['inner']} px on a screen of {page['screen']} px"
    if page["scroll"] > page["inner"]:
        yield f"{page['scroll']} px wide on {page['inner']} px"
    if page["wide"]:
        yield f"wider than the screen: {page['wide'][:5]}"


def _letters(page: Measured) -> Iterator[str]:
    for text, size, _ in page["texts"]:
        if size < SMALLEST:
            yield f"{text!r} has {size:.1f} px"

    if page["torn"]:
        yield f"words are torn: {page['torn'][:5]}"


def _plot(plot: dict[str, Any]) -> Iterator[str]:
    box = plot["box"]
    if box[2] - box[0] < _PLOT[0] or box[3] - box[1] < _PLOT[1]:
        yield f"it has {box[2] - box[0]:.0f} x {box[3] - box[1]:.0f} px"
    if not plot["colours"]:
        yield "nothing is drawn in it"
    texts = [*plot["texts"], *plot["sideways"]]
    for text, each in texts:
        if not _inside(each, box):
            yield f"{text!r} is cut off"
    for (one, here), (other, there) in combinations(texts, 2):
        if _overlap(here, there):
            yield f"{one!r} is written over {other!r}"


def _inside(each: Box, box: Box) -> bool:
    return (
        each[0] >= box[0] - _HALF
        and each[1] >= box[1] - _HALF
        and each[2] <= box[2] + _HALF
        and each[3] <= box[3] + _HALF
    )


def _overlap(one: Box, other: Box) -> bool:
    return (
        min(one[2], other[2]) - max(one[0], other[0]) > _HALF and min(one[3], other[3]) - max(one[1], other[1]) > _HALF
    )


def _colours(page: Measured) -> Iterator[str]:
    back = page["background"]
    for text, _, colour in page["texts"]:
        if contrast(colour, back) < _CONTRAST[0]:
            yield f"{text!r} is {colour} on {back}"
    for colour in sorted({colour for plot in page["plots"] for colour in plot["colours"]}):
        if contrast(colour, back) < _CONTRAST[1]:
            yield f"a line is {colour} on {back}"


def contrast(one: str, other: str) -> float:
    """Of two CSS colours "rgb(r, g, b)", from 1 to 21."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
