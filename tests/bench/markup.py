"""Pages of benchmarks: HTML with everything in one file, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; --good: #228833; --bad: #cc3311; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; } h3 { font-size: 1rem; margin-bottom: .2rem; }
@media (prefers-color-scheme: dark) { @media screen { :root { --good: #55bb66; --bad: #ff7755; } } }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th.word, td.word { text-align: left; }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
svg { display: block; max-width: 100%; height: auto; margin: .6rem 0; }
svg text { fill: currentColor; font: 12px system-ui, sans-serif; }
pre { background: var(--soft); padding: .6rem; overflow-x: auto; }
"""


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = "\n".join([f"<h1>{escape(title)}</h1>", *parts])
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )


def section(heading: str, *parts: str) -> str:
    """A heading and what stands below it."""
    return "\n".join([f"<h2>{escape(heading)}</h2>", *parts])


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{escape(text)}</p>"


def bullets(lines: Iterable[str]) -> str:
    """A list of plain texts."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def verdict(met: bool) -> str:
    """Coloured."""
    return f'<span class="{"good" if met else "bad"}">{"met" if met else "missed"}</span>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """The first ``words`` columns are words, the others figures. Cells that begin with < are markup already."""
    lines = [_row("th", head, words), *(_row("td", row, words) for row in rows)]
    return '<div class="scroll"><table>' + "\n".join(lines) + "</table></div>"


def prose(text: str) -> str:
    """A docstring: blocks between empty lines; a block of lines that begin with "- " is a list, "# " is a heading."""
    return "\n".join(_block(block.splitlines()) for block in text.strip().split("\n\n"))


def _row(tag: str, cells: Sequence[str], words: int) -> str:
    parts = []
    for number, cell in enumerate(cells):
        attribute = ' class="word"' if number < words else ""
        parts.append(f"<{tag}{attribute}>{cell if cell.startswith('<') else escape(cell)}</{tag}>")
    return "<tr>" + "".join(parts) + "</tr>"


def _block(lines: Sequence[str]) -> str:
    if lines[0].startswith("# "):
        return f"<h3>{escape(lines[0][2:])}</h3>" + (_block(lines[1:]) if lines[1:] else "")
    if not lines[0].startswith("- "):
        return paragraph(" ".join(line.strip() for line in lines))
    items: list[str] = []
    for line in lines:
        if line.startswith("- "):
            items.append(line[2:])
        else:
            items[-1] += " " + line.strip()
    return bullets(items)
