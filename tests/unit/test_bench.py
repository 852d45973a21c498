"""The pure parts of the benchmarks: figures, aims, what is written about them. Nothing here measures anything."""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from manager_vm.wire import tpm
from tests.bench import markup, plots, stats
from tests.bench.__main__ import BENCHMARKS
from tests.bench.command import aims, crowd, paths, probe, report, workload
from tests.bench.command.parts import Piece, Share
from tests.bench.command.paths import BARE, BARE_KEY, CRB, DEV, DEV_PING, IN_MANAGER, IVSHMEM, RELAY, VIRTIO
from tests.bench.command.result import Result
from tests.bench.report import Report
from tests.bench.stats import Samples, Series

OK = tpm.HEADER.pack(tpm.TPM_ST_NO_SESSIONS, 10, 0)
SHARES = {BARE: {"client": 5.0, "swtpm": 6.0}, DEV: {"client": 20.0, "manager": 40.0, "swtpm": 8.0}}
MACHINE: dict[str, object] = {"cpu": "a & b", "accelerator": "tcg,thread=multi", "guest_meltdown": "Mitigation: PTI"}


class FakeTpm:
    """Answers every command with ``response`` and remembers it."""

    def __init__(self, response: bytes = OK) -> None:
        self.response = response
        self.seen: list[bytes] = []

    def execute(self, command: bytes) -> bytes:
        self.seen.append(command)
        return self.response

    def close(self) -> None:
        pass


def series(path: str, command: str, *medians: float) -> Series:
    """Rounds of three samples around these medians."""
    return Series(path, command, tuple((each - 1.0, each, each + 5.0) for each in medians))


def measured(dev: float, guest: float) -> tuple[Series, ...]:
    """A whole run in which (a) takes 10 us, (b) ``dev``, (d) 1000, (c) ``guest``."""
    times = {BARE: 10.0, RELAY: 15.0, BARE_KEY: 12.0, DEV: dev, CRB: 1000.0, IN_MANAGER: 200.0}
    for path in (IVSHMEM, VIRTIO):
        times |= {path: guest, paths.again(path): guest, paths.link(path): guest / 2}
    found = [series(path, command, us, us) for path, us in times.items() for command in workload.COMMANDS]
    found += [series(path, workload.PING, 30.0) for path in (DEV_PING, paths.ping(IVSHMEM), paths.ping(VIRTIO))]
    speeds = (paths.HOST_SPEED, 10.0), (paths.MANAGER_SPEED, 150.0)
    return (*found, *(series(p, each, us) for p, us in speeds for each in (workload.LOOP, workload.SYSTEM)))


def result(dev: float = 80.0, guest: float = 5000.0) -> Result:
    """Of such a run."""
    found = measured(dev, guest)
    shares = tuple(Share(path, who, us, 1.0) for path, each in SHARES.items() for who, us in each.items())
    shares += (Share(RELAY, "relay", 9.0, 2.0),)
    pieces = (Piece("poll <ready>", "manager", 0.5, 4),)
    return Result(MACHINE, found, shares, pieces, 100.0, tuple(aims.evaluate(found, SHARES, 100.0, MACHINE)))


# -- figures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("q", "value"), [(0.0, 1.0), (0.5, 2.5), (1.0, 4.0), (0.1, 1.3)])
def test_a_quantile_lies_between_its_neighbours(q: float, value: float) -> None:
    assert stats.quantile([1.0, 2.0, 3.0, 4.0], q) == pytest.approx(value)


def test_no_samples_have_no_quantile() -> None:
    with pytest.raises(ValueError, match="no samples"):
        stats.summarise([])


def test_a_summary_is_of_all_rounds_in_any_order() -> None:
    summary = Series(BARE, "X", ((5.0, 1.0), (3.0,))).summary()
    assert (summary.count, summary.minimum, summary.median) == (3, 1.0, 3.0)


def test_noise_that_hits_a_whole_round_does_not_change_the_ratio() -> None:
    quiet, base = series(DEV, "X", 20.0, 20.0, 20.0), series(BARE, "X", 10.0, 10.0, 10.0)
    noisy, noisy_base = series(DEV, "X", 20.0, 200.0, 20.0), series(BARE, "X", 10.0, 100.0, 10.0)
    assert stats.compare(noisy, noisy_base).ratio == stats.compare(quiet, base).ratio == 2.0
    assert stats.compare(noisy, noisy_base).difference == 10.0


def test_paths_with_different_numbers_of_rounds_are_not_compared() -> None:
    with pytest.raises(ValueError):
        stats.compare(series(DEV, "X", 1.0), series(BARE, "X", 1.0, 2.0))


def test_samples_are_kept_round_by_round() -> None:
    samples = Samples()
    samples.add(BARE, {"X": [1.0, 2.0]})
    samples.add(BARE, {"X": [3.0]})
    assert samples.series() == (Series(BARE, "X", ((1.0, 2.0), (3.0,))),)


def test_what_was_not_measured_is_not_found() -> None:
    with pytest.raises(KeyError, match="not measured"):
        stats.find(measured(20.0, 900.0), BARE, "X")


# -- aims ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dev", "met"), [(25.0, True), (25.1, False)])
def test_dev_may_be_fifteen_microseconds_above_a_bare_swtpm(dev: float, met: bool) -> None:
    assert aims.evaluate(measured(dev, 900.0), SHARES, 100.0, MACHINE)[0].met is met


@pytest.mark.parametrize(("guest", "met"), [(1000.0, True), (1001.0, False)])
def test_a_guest_may_be_as_slow_as_with_tpm_crb(guest: float, met: bool) -> None:
    assert aims.evaluate(measured(20.0, guest), SHARES, 100.0, MACHINE)[1].met is met


def test_nv_write_has_no_aim_in_dev_mode_because_it_is_durable() -> None:
    aim = aims.evaluate(measured(20.0, 900.0), SHARES, 100.0, MACHINE)[0]
    assert [item.comparison.command for item in aim.items] == [c for c in workload.COMMANDS if c != workload.NV_WRITE]


def test_without_guests_there_is_one_aim() -> None:
    host_only = [each for each in measured(20.0, 900.0) if each.path in (BARE, BARE_KEY, DEV, DEV_PING, RELAY)]
    assert len(aims.evaluate(host_only, SHARES, 100.0, MACHINE)) == 1


def test_emulation_is_named_as_a_reason_only_where_the_processor_is_emulated() -> None:
    emulated, real = (
        aims.evaluate(measured(20.0, 5000.0), SHARES, 100.0, {"accelerator": each})[1] for each in ("tcg", "kvm")
    )
    assert any("emulated" in each for each in emulated.why) and any("KVM" in each for each in emulated.closing)
    assert not any("emulated" in each for each in (*real.why, *real.closing))


def test_the_parts_of_a_guests_way_add_up_to_the_whole() -> None:
    parts = aims.parts(measured(20.0, 5000.0), IVSHMEM, workload.QUOTE)
    assert sum(value for _, value in parts) == 5000.0
    assert dict(parts)["swtpm"] == 200.0


# -- what is written ----------------------------------------------------------------------------------------


def test_the_terminal_shows_every_path_and_why_an_aim_is_missed() -> None:
    text = report.text(result())
    assert "MISSED" in text and "why:" in text and "to close it:" in text
    for path in (BARE, DEV, CRB, IVSHMEM, VIRTIO, RELAY, IN_MANAGER):
        assert paths.title(path) in text


def test_an_aim_that_is_met_needs_no_reason() -> None:
    text = report.text(result(dev=20.0, guest=900.0))
    assert "MISSED" not in text and "why:" not in text


def test_the_page_is_whole_in_itself_and_escapes_what_it_shows() -> None:
    page = report.page(result(), "Title <1>", "# Method\n\n- one\n  more\n- two")
    assert not re.search(r"https?://|src=|href=|url\(|<script|@import", page)
    assert "Title &lt;1&gt;" in page and "a &amp; b" in page and "poll &lt;ready&gt;" in page
    assert "<li>one more</li><li>two</li>" in page
    assert page.count("<svg") == page.count("</svg>") > 8


def test_the_json_holds_every_sample_and_can_be_read_again(tmp_path: Path) -> None:
    found = result()
    files = Report(found.json(), "<p>", "").keep(tmp_path / "bench", "command")
    data = json.loads(files[0].read_text())
    assert [file.name for file in files] == ["command.json", "command.html"]
    assert data["series"][0]["rounds"] == [list(each) for each in found.series[0].rounds]
    assert {each["met"] for each in data["aims"]} == {False}
    assert sorted(path.name for path in (tmp_path / "bench").iterdir()) == ["command.html", "command.json"]


@pytest.mark.parametrize("top", [0.3, 1.0, 9.7, 68.5, 20000.0])
def test_an_axis_reaches_beyond_its_largest_value_in_few_round_steps(top: float) -> None:
    ticks = plots.ticks(top)
    assert ticks[0] == 0.0 and ticks[-1] >= top > ticks[-2] and 3 <= len(ticks) <= 7


def test_large_numbers_have_their_thousands_apart() -> None:
    assert [plots.number_text(each) for each in (9.87, 99.96, 1234.5)] == ["9.9", "100", "1\u202f234"]


def test_a_cell_that_is_text_is_escaped_and_markup_is_kept() -> None:
    table = markup.table(["a", "b"], [["x > y", markup.verdict(True)]])
    assert "x &gt; y" in table and '<span class="good">met</span>' in table


# -- the commands and the probe -----------------------------------------------------------------------------


def test_every_command_is_well_formed() -> None:
    commands = [each for _, _, many in workload.work(dict.fromkeys(workload.COMMANDS, 1)) for each in many]
    assert all(tpm.check_frame(each) is None for each in [*commands, *workload.setup()])


def test_two_nv_writes_that_follow_each_other_differ() -> None:
    ((_, _, commands),) = workload.work({workload.NV_WRITE: 2})
    assert len(set(commands)) == len(commands) == 2


def test_a_plan_for_another_machine_is_plain_json() -> None:
    plan = json.loads(json.dumps(workload.plan("/dev/tpm0", {workload.GET_RANDOM: 3}, prepare=True)))
    assert plan["work"] == [["GetRandom", 3, [tpm.get_random(16).hex()]]]
    assert len(plan["setup"]) == len(workload.setup())


def test_a_few_commands_come_before_those_that_count_and_commands_take_turns() -> None:
    fake = FakeTpm()
    found = probe.measure(fake, [("X", 6, [b"first", b"second"])])
    assert len(found["X"]) == 6 and len(fake.seen) > 6
    assert fake.seen == [b"first", b"second"] * (len(fake.seen) // 2)


def test_an_answer_that_is_no_success_ends_the_measurement() -> None:
    with pytest.raises(RuntimeError, match="was answered with 00000101"):
        probe.measure(FakeTpm(tpm.error_response(tpm.RC.TPM_RC_FAILURE)), [("X", 1, [tpm.get_random(1)])])


def test_the_probe_needs_only_the_standard_library() -> None:
    tree = ast.parse(Path(probe.__file__).read_text())
    names = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert names and all(name.split(".")[0] in sys.stdlib_module_names for name in names)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_has_a_title_options_and_a_run(name: str) -> None:
    module = importlib.import_module(BENCHMARKS[name])
    assert module.TITLE and callable(module.add_arguments) and callable(module.run)


def load(name: str, median: float, served: tuple[int, ...]) -> crowd.Load:
    return crowd.Load(name, 2.0, median, 2 * median, 3 * median, 4 * median, (median, median), served)


def test_fairness_is_1_where_all_were_served_alike_and_one_nth_where_one_had_all() -> None:
    assert load(crowd.ALL, 5.0, (7, 7, 7, 7)).jain == 1.0
    assert load(crowd.ALL, 5.0, (8, 0, 0, 0)).jain == 0.25
    assert load(crowd.ALL, 5.0, (6, 2)).rate == 4.0


def test_many_guests_are_compared_with_as_many_bare_swtpms_in_text_page_and_json() -> None:
    loads = {kind: (load(crowd.ALL, us, (30, 10)),) for kind, us in ((crowd.SWTPM, 10.0), (crowd.SHIM, 45.0))}
    crowds = tuple(crowd.Crowd(kind, 2, 0.5, (0.1, 0.2), each) for kind, each in loads.items())
    found = replace(result(), crowds=crowds)
    (row,) = [line for line in report.text(found).splitlines() if crowd.SHIM in line and crowd.ALL in line]
    assert row.split()[-3:] == ["0.800", "10-30", "4.5"]
    assert "Many guests at one QEMU shim" in report.page(found, "t", "how") and "4.5" in report.page(found, "t", "how")
    told = json.loads(json.dumps(found.json()))["crowds"]
    assert [(each["kind"], each["loads"][0]["jain"]) for each in told] == [(crowd.SWTPM, 0.8), (crowd.SHIM, 0.8)]
    assert "Many guests" not in report.page(result(), "t", "how")
