"""A guest that measures as IMA does while its manager is away: what it sees is as CHANNEL.md, section 4, says."""

from __future__ import annotations

import hashlib
from itertools import combinations
from pathlib import Path

import pytest

from image.host.agent import Agent
from tests.system import vms
from tests.system.test_guest import PCR

EXTENDER = Path(__file__).with_name("extender.py")
_BEFORE, _AFTER = 5, 10  # extends before the outage, and after it
_SURELY_SEEN = 15  # seconds of outage that no guest's kernel waits for (about 6)
RETRY, FAILURE = "0x922", "0x101"
OPEN = ("ETIME", "EIO", FAILURE)  # the outcome is not known to who asked


def extended(numbers: list[int]) -> str:
    """The PCR after these extends, from zero."""
    pcr = bytes(32)
    for number in numbers:
        pcr = hashlib.sha256(pcr + number.to_bytes(32, "big")).digest()
    return pcr.hex()


def possible(log: list[tuple[int, str]]) -> set[str]:
    """Every PCR value that these outcomes allow: what was acknowledged is in it, what was refused is not."""
    open_ones = [number for number, outcome in log if outcome in OPEN]
    done = [number for number, outcome in log if outcome == "ok"]
    subsets = (some for count in range(len(open_ones) + 1) for some in combinations(open_ones, count))
    return {extended(sorted([*done, *some])) for some in subsets}


def read_log(agent: Agent) -> list[tuple[int, str]]:
    """(number, outcome) of every extend."""
    lines = [line.split() for line in agent.check("cat /tmp/log").splitlines()]
    return [(int(number), outcome) for number, outcome in lines]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seconds", [5, pytest.param(20, marks=pytest.mark.full)])
def test_every_acknowledged_extend_is_in_the_pcr_once_and_no_refused_one_is(lab: vms.Lab, seconds: int) -> None:
    agent = lab.guest().vm.agent
    agent.write("/root/extender.py", EXTENDER.read_bytes())
    agent.check("rm -f /tmp/stop /tmp/end /tmp/log; touch /tmp/log")
    agent.check("python3 /root/extender.py </dev/null >/tmp/extender.err 2>&1 &")
    agent.check(f"while [ $(wc -l </tmp/log) -lt {_BEFORE} ]; do sleep 0.1; done")
    lab.manager.agent.check(f"systemctl stop vtpm-manager; sleep {seconds}; systemctl start vtpm-manager", 120)
    agent.check(f"n=$(wc -l </tmp/log); while [ $(wc -l </tmp/log) -lt $((n + {_AFTER})) ]; do sleep 0.1; done", 120)
    agent.check("touch /tmp/stop; while ! test -e /tmp/end; do sleep 0.2; done", 60)
    log = read_log(agent)
    outcomes = {outcome for _, outcome in log}
    print(f"an outage of {seconds} s and a restart: {[(n, o) for n, o in log if o != 'ok']} of {len(log)} extends")
    assert outcomes <= {"ok", RETRY, *OPEN}
    assert len([1 for _, outcome in log if outcome in OPEN]) <= 1, "at most the one under way when the manager left"
    assert RETRY in outcomes or seconds < _SURELY_SEEN, "the guest's kernel does not wait for so long"
    assert log[-1][1] == "ok", "service comes back by itself"
    found = agent.check(PCR.replace("sha256:7", "sha256:10")).strip().lower().removeprefix("0x")
    assert found in possible(log)
