"""The pure parts of the comparison of moves: plan, schedule, conclusions, page. Nothing here starts a process."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from dataclasses import replace

import pytest

from manager_vm.errors import HostError
from manager_vm.protocol.tunnel import Suite
from tests.bench.compare import drawing, findings, overhead, report, result, wire
from tests.bench.compare.overhead import Verdict
from tests.bench.compare.result import BANDWIDTH, DELAY, EVACUATE, GRID, METHODS, SUITES, WHOLE, Figures, Job, Outcome
from tests.bench.compare.schedule import Schedule
from tests.made_up_moves import figures, outcomes, page


def said(found: Sequence[Outcome], *words: str) -> list[str]:
    return [line for line in findings.conclusions(found) if all(word in line for word in words)]


def test_the_plan_has_small_cells_first_and_the_suites_take_turns() -> None:
    jobs = result.plan([50, 1, 10], [512, 1024], METHODS, 2, [12_500_000])
    grid = [job.count for job in jobs if job.part == GRID]
    assert grid == sorted(grid) and len(set(jobs)) == len(jobs)
    suites = [job for job in jobs if job.part == SUITES]
    assert [job.suite for job in suites[:3]] == [job.suite for job in suites[:2:-1]]
    assert {(job.count, job.memory) for job in jobs if job.part != GRID} == {(10, 512)}
    assert [job.method for job in jobs if job.part == BANDWIDTH] == list(reversed(METHODS))
    delayed = [job for job in result.plan([1, 10], [512], METHODS, 0, [], [20]) if job.part == DELAY]
    assert [(job.method, job.rtt, job.count) for job in delayed] == [(each, 20, 10) for each in reversed(METHODS)]
    assert delayed[0].told() == "10 vTPMs, 512 MB, evacuate, 20 ms"
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
    aes, chacha = overhead.overheads(outcomes())
    assert aes.total == pytest.approx((5.0,) * 3) and chacha.downtime == pytest.approx((10.0,) * 3)
    (line,) = said(outcomes(), "aes-256-gcm against none")
    assert "total +5.0 % (rounds: +5.0 to +5.0 %), aim of 10 % met; downtime +5.0 %" in line
    assert said(outcomes(), "100 Mbit/s", "precopy", "3.0 times")


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((1.0, 9.0, 4.0), Verdict.MET),
        ((10.0000001, 9.5), Verdict.MET),
        ((-3.0, 2.0), Verdict.MET),
        ((10.1, 30.0, 80.0), Verdict.MISSED),
        ((-30.0, 9.0, 4.0), Verdict.MET),
        ((-3.0, 9.0, 20.0), Verdict.NOISY),
        ((8.0, 9.0, 12.0), Verdict.BOTH),
        ((3.0,), Verdict.ONE),
        ((300.0,), Verdict.ONE),
    ],
)
def test_the_aim_is_met_if_no_round_misses_it_and_missed_if_all_do(values: tuple[float, ...], verdict: Verdict) -> None:
    assert overhead.judge(values) is verdict


@pytest.mark.parametrize("what", ["total", "downtime"])
@pytest.mark.parametrize(
    ("rounds", "text", "shown"),
    [
        ((1.02, 1.05, 1.09), "+5.0 % (rounds: +2.0 to +9.0 %), aim of 10 % met", '<span class="good">met</span>'),
        ((1.2, 1.5, 1.3), "+30.0 % (rounds: +20.0 to +50.0 %), aim of 10 % missed", '<span class="bad">missed</span>'),
        (
            (0.8, 1.02, 1.3),
            "+2.0 % (rounds: -20.0 to +30.0 %), aim of 10 % not decided: the noise",
            "not decided: the n",
        ),
        (
            (1.08, 1.09, 1.13),
            "+9.0 % (rounds: +8.0 to +13.0 %), aim of 10 % not decided: rounds lie",
            "not decided: ro",
        ),
        ((1.3,), "+30.0 % (rounds: +30.0 to +30.0 %), aim of 10 % not decided: one round", "not decided: one round"),
    ],
)
def test_the_report_says_median_range_and_verdict_of_each_cipher(
    what: str, rounds: tuple[float, ...], text: str, shown: str
) -> None:
    found = []
    for number, factor in enumerate(rounds):
        base = replace(figures("precopy", 10), total=10.0, downtime=2.0)
        slow = replace(base, **{what: getattr(base, what) * factor})
        for suite, each in ((Suite.NONE, base), (Suite.CHACHA, slow)):
            found.append(Outcome(Job(SUITES, 10, 512, "precopy", str(suite), round=number), each))
    (line,) = said(found, "chacha20-poly1305 against none")
    assert f"{what} {text}" in line
    (row,) = re.findall(rf'chacha20-poly1305</td><td class="word">{what}</td>.*', page(found))
    assert shown in row


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


@pytest.mark.parametrize("heights", [{10: 11.0}, {1: 1.56, 10: 1.6}, {1: 0.004, 10: 900.0}])
def test_an_axis_has_at_least_two_numbers_and_no_crowd_of_them(heights: dict[int, float]) -> None:
    drawn = drawing.lines("title", "seconds", {"precopy": heights}, [1, 10])
    vertical = re.findall(r"text-anchor: end[^>]*>([0-9.]+)<", drawn)
    assert 2 <= len(vertical) <= 8 and len(set(vertical)) == len(vertical)


def test_a_page_about_whole_managers_compares_them_with_each_other_only() -> None:
    found = outcomes(methods=WHOLE)
    assert said(found, "1024 MB, 10 vTPMs, total time: stop 80.0 s; suspend 14.0 s; precopy 20.0 s.")
    assert said(found, "1024 MB, 1 vTPM, bytes sent")
    assert not said(found, EVACUATE) and EVACUATE not in page(found) and "cross over" not in page(found)


def test_the_json_has_everything() -> None:
    found = outcomes()
    told = json.loads(json.dumps(result.data("compare", {"cpu": "x"}, found, findings.conclusions(found))))
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


def test_what_was_kept_is_read_again_and_says_the_same() -> None:
    found = outcomes()
    kept = json.loads(json.dumps(result.data("compare", {"cpu": "x"}, found, [])))
    assert result.read(kept) == found
    with pytest.raises(TypeError):
        result.read({**kept, "version": 99})
