"""The pages about moves in a real browser: drawn, read on a phone, printed, and alone."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import made_up_moves
from tests.bench import compare, relocate
from tests.bench.compare.result import WHOLE
from tests.integration import page_flaws
from tests.integration.browser import Browser

_DESK, _PHONE, _PAPER = (1280, 900), (390, 844), (717, 1040)  # CSS px; the paper's without its margins
_QUANTITIES = ("total time", "longest wait of one vTPM", "waiting of all vTPMs together", "bytes sent")
PLOTS = [
    *(f"{memory} MB: {what}" for memory in (512, 1024) for what in _QUANTITIES),
    "Tunnel's cipher: total",
    "Tunnel's cipher: downtime",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture(scope="module")
def whole() -> str:
    return made_up_moves.page(made_up_moves.outcomes(), compare.__doc__ or "")


@pytest.fixture
def file(tmp_path: Path, whole: str) -> Path:
    return written(tmp_path, whole)


def written(directory: Path, text: str) -> Path:
    path = directory / "compare.html"
    path.write_text(text)
    return path


def flaws(browser: Browser) -> list[str]:
    return page_flaws.flaws(browser.run(page_flaws.MEASURE), PLOTS)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("size", "phone"), [(_DESK, False), (_PHONE, True)], ids=["desk", "phone"])
def test_every_plot_is_drawn_and_all_text_can_be_read(
    browser: Browser, file: Path, size: tuple[int, int], phone: bool, scheme: str
) -> None:
    browser.look(scheme=scheme)
    browser.open(file, *size, phone=phone)
    assert flaws(browser) == []


@pytest.mark.parametrize("counts", [(1,), (1, 10, 50, 200)])
def test_the_page_about_whole_managers_is_no_worse(browser: Browser, tmp_path: Path, counts: tuple[int, ...]) -> None:
    found = made_up_moves.outcomes(counts, WHOLE)
    browser.look()
    browser.open(written(tmp_path, made_up_moves.page(found, relocate.__doc__ or "", "relocate")), *_PHONE, phone=True)
    assert flaws(browser) == []


def test_what_is_too_wide_for_a_phone_can_be_scrolled_to(browser: Browser, file: Path) -> None:
    browser.look()
    browser.open(file, *_PHONE, phone=True)
    ends = browser.run(
        "[...document.querySelectorAll('.scroll')].filter((e) => e.scrollWidth > e.clientWidth)"
        ".map((e) => { e.scrollLeft = 1e6; return e.scrollLeft + e.clientWidth - e.scrollWidth; })"
    )
    assert len(ends) > 2 and all(abs(each) < 1 for each in ends)


def test_nothing_is_asked_of_the_network(browser: Browser, file: Path, whole: str) -> None:
    assert browser.open(file, *_DESK) == [file.as_uri()]
    assert not re.search(r"""(?:src|href|action|data)\s*=\s*["']?(?:[a-z+]+:)?//|url\(\s*["']?[^#)]""", whole)


def test_on_paper_it_is_light_nothing_is_cut_off_and_text_stays_text(browser: Browser, file: Path) -> None:
    browser.look(medium="print", scheme="dark")
    browser.open(file, *_PAPER)
    assert flaws(browser) == []
    assert browser.run("Math.max(...[...document.querySelectorAll('table')].map((e) => e.scrollWidth))") <= _PAPER[0]
    browser.look()
    printed = browser.pdf()
    assert printed.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", printed)) > 1
    assert b"/FontFile2" in printed and b"/ToUnicode" in printed and b"/Subtype /Image" not in printed
    streams = [each for each in map(inflated, re.findall(rb"stream\r?\n(.*?)endstream", printed, re.DOTALL)) if each]
    assert sum(len(re.findall(rb"T[jJ]\b", each)) for each in streams) > 500


def inflated(data: bytes) -> bytes:
    """A stream of a PDF, or nothing."""
    try:
        return zlib.decompressobj().decompress(data)
    except zlib.error:
        return b""


_PLOT = re.compile(r"<figure>.*?</figure>", re.DOTALL)


@pytest.mark.parametrize(
    ("pattern", "instead", "complaint"),
    [
        (_PLOT, "", "plots: "),
        (re.compile("<(?:path|use) "), "<g ", "nothing is drawn in it"),
        (re.compile(r'<svg width="100%"'), '<svg width="60"', "it has 60 x"),
        (re.compile("<h2>"), '<p style="width: 700px">wide</p><h2>', "px wide on 390 px"),
        (re.compile("<h2>"), '<p style="font-size: 10px">small</p><h2>', "'small' has 10.0 px"),
        (re.compile("<h2>"), '<p style="color: #888">pale</p><h2>', "'pale' is rgb(136, 136, 136)"),
        (
            re.compile("<h2>"),
            '<p style="width: 3ch; overflow-wrap: anywhere">narrow</p><h2>',
            "words are torn: ['narrow'",
        ),
        (re.compile("</svg>"), '<text x="340" y="20">half of it</text></svg>', "'half of it' is cut off"),
        (re.compile("(<text .*?</text>)", re.DOTALL), r"\1\1", "is written over"),
        (re.compile('<meta name="viewport"[^>]*>'), "", "on a screen of 390 px"),
    ],
)
def test_a_flaw_of_the_page_is_found(
    browser: Browser, tmp_path: Path, whole: str, pattern: re.Pattern[str], instead: str, complaint: str
) -> None:
    count = 0 if instead == "<g " else 1
    broken = pattern.sub(instead, whole, count=count)
    assert broken != whole
    browser.look()
    browser.open(written(tmp_path, broken), *_PHONE, phone=True)
    assert [each for each in flaws(browser) if complaint in each]


@pytest.mark.parametrize(
    "more",
    [
        '<img src="http://example.invalid/a.png">',
        "<style>@font-face { font-family: x; src: url(https://example.invalid/x) } p { font-family: x }</style>",
        '<script>fetch("https://example.invalid/")</script>',
    ],
)
def test_a_page_that_asks_the_network_is_found(browser: Browser, tmp_path: Path, whole: str, more: str) -> None:
    asked = browser.open(written(tmp_path, whole.replace("<h2>", more + "<h2>", 1)), *_DESK)
    assert any("example.invalid" in each for each in asked)
