"""What the benchmarks of moves are asked for, and what they plan to run. Nothing here starts a process."""

from __future__ import annotations

import argparse
from collections import Counter

import pytest

from manager_vm.protocol.tunnel import Suite
from tests.bench import compare, relocate
from tests.bench.compare import experiment
from tests.bench.compare.experiment import Scale
from tests.bench.compare.result import BANDWIDTH, DELAY, EVACUATE, GRID, METHODS, SUITES, WHOLE, Job


def parsed(words: str, usual: Scale = relocate.USUAL) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    experiment.add_arguments(parser, usual)
    return parser.parse_args(words.split())


def planned(words: str, usual: Scale = relocate.USUAL) -> list[Job]:
    return experiment.jobs(parsed(words, usual), usual)


def test_whole_managers_are_moved_by_each_method_in_each_cell_once() -> None:
    jobs = [job for job in planned("") if job.part == GRID]
    assert {(job.count, job.method) for job in jobs} == {(count, method) for count in (1, 10) for method in WHOLE}
    assert len(jobs) == 6 and {job.memory for job in jobs} == {512}
    assert EVACUATE not in {job.method for job in planned("--counts 1 10 50 --memory 512 1024")}


def test_secured_and_unsecured_are_in_three_rounds_each_in_the_order_that_the_one_before_has_not() -> None:
    for jobs in (planned(""), planned("", compare.USUAL)):
        suites = [job.suite for job in jobs if job.part == SUITES]
        assert Counter(suites) == {str(suite): 3 for suite in Suite}
        assert suites[:3] == suites[5:2:-1] == suites[6:]
        assert [job.round for job in jobs if job.part == SUITES] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_options_say_what_is_moved_how_and_how_often() -> None:
    jobs = planned("--counts 3 --memory 256 --methods precopy --repetitions 1 --limits 100 10")
    assert {job.cell for job in jobs} == {(256, 3)} and {job.method for job in jobs} == {"precopy"}
    assert Counter(job.part for job in jobs) == {GRID: 1, SUITES: 3, BANDWIDTH: 2}
    assert [job.limit for job in jobs if job.part == BANDWIDTH] == [12_500_000, 1_250_000]
    assert parsed("--budget 7.5").budget == 7.5 and parsed("").budget == 20.0


def test_no_repetitions_no_limits_and_no_delays_leave_these_parts_out() -> None:
    assert {job.part for job in planned("--repetitions 0 --limits --delays", compare.USUAL)} == {GRID}
    assert {job.part for job in planned("", compare.USUAL)} == {GRID, SUITES, BANDWIDTH, DELAY}


def test_a_quick_run_has_one_vtpm_and_one_round() -> None:
    jobs = planned("--quick")
    assert {job.cell for job in jobs} == {(512, 1)} and {job.limit for job in jobs} == {0}
    assert [job.method for job in jobs if job.part == GRID] == list(reversed(WHOLE))
    assert len([job for job in jobs if job.part == SUITES]) == len(Suite)
    assert [job.method for job in planned("--quick", compare.USUAL) if job.part == GRID] == list(reversed(METHODS))


@pytest.mark.parametrize("words", ["--methods evacuate", "--counts 0", "--memory x", "--repetitions -1", "--limits 0"])
def test_what_cannot_be_done_is_no_option(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(words)
    assert "error: argument" in capsys.readouterr().err
