"""The whole suite as two processes at once: VMs need most of a core, all other tests half of one.

    python -m tests.side_by_side [--report DIRECTORY] [PYTEST OPTION...]

What the VMs' process says is shown when the other has ended. Exit code: that of the first that failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
VMS = "tests/system"


def main() -> int:
    """Run both; whoever interrupts this interrupts both, for they are in one process group."""
    parser = argparse.ArgumentParser(description="Run the whole suite in two processes.")
    parser.add_argument("--report", type=Path, metavar="DIRECTORY", help="keep results there, as JUnit XML")
    args, options = parser.parse_known_args()
    log = ROOT / "build" / "log" / "tests-of-vms.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as said:
        vms = _start("vms", args.report, [*options, VMS], said)
        rest = _start("rest", args.report, [*options, "tests", "--ignore", VMS], None)
        codes = [each.wait() for each in (rest, vms)]
    print(log.read_text(errors="replace"), flush=True)
    return next((code for code in codes if code), 0)


def _start(name: str, report: Path | None, words: list[str], output: IO[bytes] | None) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    if report is not None:
        argv += ["--junitxml", str(report / f"{name}.xml")]
    return subprocess.Popen(argv, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)


if __name__ == "__main__":
    sys.exit(main())
