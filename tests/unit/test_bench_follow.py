"""The pure parts of the benchmark of VMs that move: figures, and what is written about them."""

from __future__ import annotations

import json

from tests.bench.follow import report
from tests.bench.follow.measure import FOLLOWS, HOST, Move


def moves(ours: float, theirs: float) -> list[Move]:
    """Two rounds."""
    found = []
    for extra in (0.0, 10.0):
        found.append(Move(FOLLOWS, ours + extra, ours + extra, 1000.0, 50.0, {"ticket": 15.0, "redeem": 40.0}))
        found.append(Move(HOST, theirs + extra, theirs + extra, 900.0, 40.0))
    return found


def test_a_ratio_is_the_median_of_the_rounds_and_says_whether_the_aim_is_met() -> None:
    assert report.ratio(moves(100.0, 100.0), "downtime") == (1.0, 1.0, 1.0)
    assert "1.00 times (met)" in report.text(moves(100.0, 100.0))
    middle, low, high = report.ratio(moves(300.0, 100.0), "stood")
    assert 310 / 110 < low < middle < high < 3.0
    assert "(MISSED)" in report.text(moves(300.0, 100.0))


def test_text_page_and_json_have_the_parts_of_ours() -> None:
    found = moves(120.0, 100.0)
    assert [line.split()[:2] for line in report.text(found).splitlines() if line.startswith("redeem")] == [
        ["redeem", "40"]
    ]
    page = report.page("t", "about", {"cpu": "a & b"}, found)
    assert "a &amp; b" in page and "redeem" in page
    told = json.loads(json.dumps(report.data({}, found)))
    assert len(told["moves"]) == 4 and told["moves"][0]["parts"]["redeem"] == 40.0
