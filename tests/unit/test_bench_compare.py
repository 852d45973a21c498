"""The pure parts of the comparison of moves: plan, schedule, conclusions, page. Nothing here starts a process."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence

import pytest

from manager_vm.errors import HostError
from manager_vm.protocol.tunnel import Suite
from tests.bench.compare import findings, report, result, wire
from tests.bench.compare.result import BANDWIDTH, EVACUATE, GRID, METHODS, SUITES, Figures, Job, Outcome
from tests.bench.compare.schedule import Schedule

WHOLE_TOTAL = {"stop": 80.0, "suspend": 14.0, "precopy": 20.0}


def figures(method: str, count: int, scale: float = 1.0) -> Figures:
    """A whole manager takes always the same, a vTPM alone two seconds."""
    tpm = {"Quote": 2, "Create": 1}
    if method == EVACUATE:
        pauses = tuple(0.5 + number / 100 for number in range(count))
        return Figures(
            2.0 * count * scale,
            0.5,
            0,
            40_000 * count,
            3.0 * count,
            pauses,
            tpm,
            tpm,
            0,
            6,
            least=tuple(each / 2 for each in pauses),
        )
    total = WHOLE_TOTAL[method] * scale
    return Figures(total, total / 4, 150_000_000, 9_000, 20.0, (), tpm, tpm, 0, 6, {"agree": 0.0, "finish": total / 2})


def outcomes(counts: Sequence[int] = (1, 10, 50)) -> list[Outcome]:
    """A whole run in which one cell did not fit, and some were left out."""
    jobs = result.plan(counts, [512, 1024], METHODS, 3, [12_500_000])
    slow = {str(Suite.NONE): 1.0, str(Suite.AES): 1.05, str(Suite.CHACHA): 1.10}
    found = []
    for job in jobs:
        scale = slow[job.suite] if job.part == SUITES else 3.0 if job.limit else 1.0
        if job.part == GRID and job.cell == (512, 50):
            found.append(Outcome(job, reason="31 of 50 <vTPMs> could be made"))
        elif job.part == GRID and job.cell == (1024, 50) and job.method == "stop":
            found.append(Outcome(job, reason="left out: the budget", left_out=True))
        else:
            found.append(Outcome(job, figures(job.method, job.count, scale)))
    return found


def said(found: Sequence[Outcome], *words: str) -> list[str]:
    return [line for line in findings.conclusions(found) if all(word in line for word in words)]


def page(found: Sequence[Outcome]) -> str:
    return report.page("A & B", "# Method\n\nwords", {"cpu": "x < y"}, found, findings.conclusions(found))


def test_the_plan_has_small_cells_first_and_the_suites_take_turns() -> None:
    jobs = result.plan([50, 1, 10], [512, 1024], METHODS, 2, [12_500_000])
    grid = [job.count for job in jobs if job.part == GRID]
    assert grid == sorted(grid) and len(set(jobs)) == len(jobs)
    suites = [job for job in jobs if job.part == SUITES]
    assert [job.suite for job in suites[:3]] == [job.suite for job in suites[:2:-1]]
    assert {(job.count, job.memory) for job in jobs if job.part != GRID} == {(10, 512)}
    assert [job.method for job in jobs if job.part == BANDWIDTH] == list(reversed(METHODS))
    assert not [job for job in result.plan([1], [512], ["stop"], 3, []) if job.part == SUITES]


def test_methods_that_change_places_cross_between_two_cells_on_a_straight_line_or_where_they_are_equal() -> None:
    (found,) = findings.crossings({1: 2.0, 10: 20.0, 50: 100.0}, {1: 14.0, 10: 14.0, 200: 14.0})
    assert (found.low, found.high, found.before) == (1, 10, True) and found.at == pytest.approx(7.0)
    assert findings.crossings({1: 2.0, 10: 20.0, 50: 99.0}, {1: 20.0, 10: 20.0, 50: 20.0}) == [
        findings.Crossing(1, 50, 10, True)
    ]
    assert len(findings.crossings({1: 1.0, 2: 3.0, 3: 1.0}, {1: 2.0, 2: 2.0, 3: 2.0})) == 2
    assert findings.crossings({1: 2.0, 10: 20.0}, {1: 80.0, 10: 20.0}) == []
    assert findings.crossings({1: 2.0}, {10: 1.0}) == []


def test_the_conclusions_name_crossings_and_what_has_none() -> None:
    (line,) = said(outcomes(), "1024 MB, total time")
    stop, suspend, precopy = line.split("; ")
    assert "stop: evacuate needs less from 1 to 10, no crossing (20.0 s and 80.0 s at 10)" in stop
    assert "evacuate needs less up to about 7 (between 1 and 10), then suspend (100.0 s and 14.0 s at 50)" in suspend
    assert "up to about 10 (between 1 and 50), then precopy" in precopy
    assert said(outcomes([1]), "at the only number measured (2.0 s and 80.0 s at 1)")
    assert said(outcomes(), "512 MB, longest wait", "0.59 s and 20.00 s at 10")
    lonely = [each for each in outcomes() if each.job.method != EVACUATE or each.figures is None]
    assert said(lonely, "cannot be compared")


def test_the_overhead_is_taken_round_by_round() -> None:
    aes, chacha = findings.overheads(outcomes())
    assert aes.total == pytest.approx((5.0,) * 3) and chacha.downtime == pytest.approx((10.0,) * 3)
    (line,) = said(outcomes(), "aes-256-gcm against none")
    assert "total +5.0 %" in line
    assert said(outcomes(), "100 Mbit/s", "precopy", "3.0 times")


def test_cells_that_are_missing_are_shown_as_such_with_their_reason() -> None:
    found = outcomes()
    assert said(found, "4 failed or did not fit, 1 were left out")
    shown = page(found)
    assert "not measured: 31 of 50 &lt;vTPMs&gt; could be made" in shown and "<vTPMs>" not in shown
    assert "not measured: left out: the budget" in shown
    rows = [line for line in report.text(found, []).splitlines() if "not measured" in line]
    assert len(rows) == 5 and all(line.split()[4] == "-" for line in rows)
    nothing = [Outcome(each.job, reason="no") for each in found]
    assert "Nothing was measured" in page(nothing) and "<svg" not in page(nothing)


def test_the_page_has_its_plots_in_it_and_names_no_other_place() -> None:
    shown = page(outcomes())
    drawn = re.findall(r"<svg [^>]*>", shown)
    assert len(drawn) == 2 * 4 + 2
    assert all('viewBox="' in each and 'width="100%"' in each and 'height="' not in each for each in drawn)
    assert "http" not in shown and "url(" not in shown.replace("url(#", "") and "@import" not in shown
    assert set(re.findall(r'(?:src|href)="([^"#]+)', shown)) == {"compare.json"}
    assert ">precopy</text>" in shown and "@media print" in shown


def test_the_json_has_everything() -> None:
    found = outcomes()
    told = json.loads(json.dumps(result.data({"cpu": "x"}, found, findings.conclusions(found))))
    assert len(told["outcomes"]) == len(found)
    assert told["outcomes"][0]["job"]["method"] == EVACUATE and told["outcomes"][0]["figures"]["total"] == 2.0
    assert told["conclusions"]


class Clock:
    """Seconds pass when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0
        self.done: list[Job] = []

    def work(self, job: Job) -> Figures:
        self.now += 100.0
        self.done.append(job)
        if job.method == "suspend":
            raise HostError("it is\nfull")
        return figures(job.method, job.count)


def test_the_schedule_leaves_out_what_the_budget_has_no_room_for_and_goes_on_after_a_failure() -> None:
    clock, told = Clock(), list[str]()
    jobs = result.plan([1], [512], METHODS, 1, [])
    schedule = Schedule(clock.work, lambda memory, count: 0.0, 350.0, told.append, lambda: clock.now)
    found = schedule.carry_out(jobs)
    assert [each.job for each in found] == jobs
    assert [each.left_out for each in found[:3]] == [False] * 3 and all(each.left_out for each in found[4:])
    assert found[2].reason == "it is full" and found[2].figures is None and found[1].figures is not None
    assert "budget of 5.83333 minutes" in found[-1].reason
    assert any("min left" in line for line in told)
    assert schedule.estimate(jobs[:1]) == 100.0


def frame(source: int, target: int, sequence: int, data: bytes) -> bytes:
    """Ethernet, IPv4, TCP."""
    tcp = struct.pack(">HHIIBBHHH", source, target, sequence, 0, 0x50, 0, 0, 0, 0) + data
    address = [bytes([10, 77, 0, 1 if port == 40000 else 2]) for port in (source, target)]
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + address[0] + address[1]
    return bytes(12) + b"\x08\x00" + head + tcp


def test_the_pause_of_a_vtpm_is_seen_in_the_turns_of_its_conversation() -> None:
    talk, next_at = wire.Conversation(), {40000: (1 << 32) - 20, 7000: 5}
    for now in range(8):
        source, target = (40000, 7000) if now % 2 == 0 else (7000, 40000)
        found = wire.segment(frame(source, target, next_at[source], b"x" * 30))
        assert found is not None and found[3] == 30
        talk.data(found[0], found[2], found[3], float(now))
        talk.data(found[0], found[2], found[3], now + 0.9)  # again
        next_at[source] = (next_at[source] + 30) % (1 << 32)
        assert (talk.pause() is None) == (now < 7)
    assert talk.pause() == wire.Pause(pytest.approx(2.0), pytest.approx(4.0))  # type: ignore[arg-type]
    assert wire.segment(frame(1, 2, 3, b"")) is None
    assert wire.segment(bytes(60)) is None
