"""The pure parts of the benchmark of hierarchies: what is said of a move that is as claimed, and of one that is not."""

from __future__ import annotations

import json

from manager_vm.keys.hierarchy import Kind, Move
from tests.bench.hierarchy import report
from tests.bench.hierarchy.measure import Row
from tests.unlinkability import Finding

GOOD = Row(Kind.SK, [Move(sks=1, hardware=1)] * 2, [1.0, 2.0], [3.0, 4.0])
BAD = Row(Kind.AK_VAK, [Move(hardware=1), Move(hardware=2)], [1.0, 2.0], [3.0, 4.0], platform_shown=True)
BAD.links = [Finding(("statement.name",), frozenset({"A/0", "A/1"}))]
BAD.unnamed = ["a <new> field"]


def test_a_move_that_is_not_as_claimed_or_not_always_the_same_shows() -> None:
    lines = report.text([GOOD, BAD], 0x19C).splitlines()
    assert lines[1].split()[0] == "sk" and lines[1].endswith("yes")
    assert "varies" in lines[2] and lines[2].endswith("no")
    assert "0x19c" in lines[3]
    assert "ak-vak: A/0, A/1 share statement.name" in lines
    assert "HIERARCHIES.md does not name" in lines[-1]


def test_the_page_and_the_json_say_the_same_and_nothing_in_them_is_markup_by_chance() -> None:
    page = report.page("title", "about", {"cpu": "a & b"}, [GOOD, BAD], 0x19C)
    assert "a &lt;new&gt; field" in page and "a &amp; b" in page and "http" not in page
    told = json.loads(json.dumps(report.data({}, [GOOD, BAD], 0x19C)))
    assert told["hierarchies"][0]["measured"] == told["hierarchies"][0]["claimed"]
    assert told["hierarchies"][1]["measured"] is None
    assert told["hierarchies"][1]["links"] == [{"fields": ["statement.name"], "vtpms": ["A/0", "A/1"]}]
    assert told["ek"] == {"refused_with": "0x19c"}
