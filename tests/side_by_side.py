"""The whole suite as three processes at once: VMs need most of a core, all other tests half of one.

    python -m tests.side_by_side [--report DIRECTORY] [PYTEST OPTION...]

The others are two of about one length, for they mostly wait: moves between managers with some more, and the rest. What
the VMs' process and that of the moves say is shown when the rest has ended. Exit code: that of the first that failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
VMS = "tests/system"
_WITH_MOVES = (
    "evidence",
    "following",
    "following_faults",
    "hierarchies",
    "migration",
    "page",
    "relocation",
    "semantics",
    "tunnel",
)
MOVES = tuple(f"tests/integration/test_{each}.py" for each in _WITH_MOVES)


def main() -> int:
    """Run all; whoever interrupts this interrupts all, for they are in one process group."""
    parser = argparse.ArgumentParser(description="Run the whole suite in three processes.")
    parser.add_argument("--report", type=Path, metavar="DIRECTORY", help="keep results there, as JUnit XML")
    args, options = parser.parse_known_args()
    logs = ROOT / "build" / "log"
    logs.mkdir(parents=True, exist_ok=True)
    quiet = {"vms": [VMS], "moves": list(MOVES)}
    started = {}
    for name, words in quiet.items():
        with open(logs / f"tests-of-{name}.log", "wb") as said:
            started[name] = _start(name, args.report, [*options, *words], said)
    ignored = [word for each in (VMS, *MOVES) for word in ("--ignore", each)]
    started["rest"] = _start("rest", args.report, [*options, "tests", *ignored], None)
    codes = [started[name].wait() for name in ("rest", "moves", "vms")]
    for name in quiet:
        print((logs / f"tests-of-{name}.log").read_text(errors="replace"), flush=True)
    return next((code for code in codes if code), 0)


def _start(name: str, report: Path | None, words: list[str], output: IO[bytes] | None) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    if report is not None:
        argv += ["--junitxml", str(report / f"{name}.xml")]
    return subprocess.Popen(argv, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)


if __name__ == "__main__":
    sys.exit(main())
