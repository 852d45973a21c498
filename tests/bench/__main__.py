"""``python -m tests.bench [NAME [options]]``: run benchmarks; JSON and a page under build/bench, a table on stdout."""

from __future__ import annotations

import argparse
import importlib
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

from image.host.demo import Narrator
from manager_vm.errors import ConfigError, VtpmManagerError
from tests.bench.machine import ROOT
from tests.bench.report import Report

BENCHMARKS = {
    "command": "tests.bench.command",
    "compare": "tests.bench.compare",
    "follow": "tests.bench.follow",
    "hierarchy": "tests.bench.hierarchy",
    "migrate": "tests.bench.migrate",
    "relocate": "tests.bench.relocate",
}  # name -> module; see ``Benchmark``


class Benchmark(Protocol):
    """What such a module has."""

    TITLE: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Options of this benchmark."""

    def run(self, args: argparse.Namespace, tell: Callable[[str], None]) -> Report:
        """Measure. ``tell``: a line about progress."""


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 whatever the figures are, or that of the error."""
    _set_up()
    words = sys.argv[1:] if argv is None else argv
    if words[:1] in (["-h"], ["--help"]):
        print(f"usage: python -m tests.bench [NAME [options]]\nNAME: {', '.join(BENCHMARKS)}; without: all of them")
        return 0
    try:
        for name in words[:1] or BENCHMARKS:
            _run(name, words[1:])
    except VtpmManagerError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _run(name: str, words: list[str]) -> None:
    if name not in BENCHMARKS:
        raise ConfigError(f"there is no benchmark {name!r}; there are: {', '.join(BENCHMARKS)}")
    benchmark = cast(Benchmark, importlib.import_module(BENCHMARKS[name]))
    parser = argparse.ArgumentParser(prog=f"python -m tests.bench {name}", description=benchmark.TITLE)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench", help="where JSON and HTML go")
    benchmark.add_arguments(parser)
    args = parser.parse_args(words)
    tell = Narrator().say
    report = benchmark.run(args, tell)
    print(f"\n{benchmark.TITLE}\n\n{report.text}\n")
    tell("kept: " + ", ".join(str(path) for path in report.keep(args.out, name)))


def _set_up() -> None:
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


if __name__ == "__main__":
    sys.exit(main())
