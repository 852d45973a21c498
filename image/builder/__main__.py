"""``python3 -m image.builder``: build the images. Standard library only: it runs before anything is installed."""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
from pathlib import Path

from image import measure
from image.builder import packages
from image.builder.image import ImageBuild
from image.builder.kinds import KINDS, PROFILES
from image.builder.steps import Builder, Layout
from image.builder.tools import Tools
from manager_vm.errors import BuildError


def main() -> int:
    """Exit code 0, or that of the error."""
    args = _parser().parse_args()
    try:
        if os.geteuid() != 0:
            raise BuildError("packages are installed into roots of their own, which needs root\nremedy: run as root")
        _build(args)
    except BuildError as error:
        print(f"image.builder: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _build(args: argparse.Namespace) -> None:
    builder = Builder(Layout(Path(__file__).resolve().parents[2]))
    with open(builder.layout.cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tools = Tools(builder)
        tools.make()
        packages.compare(builder, "tools", tools.versions(), args.profile, update_lock=args.update_lock)
        for name in _wanted(args.kind, args.profile):
            ImageBuild(builder, tools, KINDS[name], args.profile).make(update_lock=args.update_lock)
        manager = builder.layout.output("manager", args.profile)
        if args.kind in ("all", "manager"):
            print(f"expected measurements of {manager}:\n{measure.as_text(measure.expected(manager))}", flush=True)


def _wanted(kind: str, profile: str) -> list[str]:
    """The guest image is for tests, and has one profile."""
    if kind == "guest" and profile == "production":
        raise BuildError("there is no production guest image, it is for tests\nremedy: leave out --profile")
    kinds = list(KINDS) if kind == "all" else [kind]
    return [each for each in kinds if profile == "debug" or each != "guest"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./build.sh image", description="Build the VM images (image/README.md).")
    parser.add_argument("kind", nargs="?", default="all", choices=["all", *KINDS], help="which image (default: all)")
    parser.add_argument("--profile", default="debug", choices=PROFILES, help="default: debug")
    parser.add_argument("--update-lock", action="store_true", help="record the packages in image/lock/")
    return parser


if __name__ == "__main__":
    sys.exit(main())
