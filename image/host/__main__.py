"""``python -m image.host run | pair``: the demonstration; the server of one ivshmem pair."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

from image.host import demo
from image.host.desk import Desk
from image.host.host import Host
from image.host.hwtpm import Kind, usable
from image.host.pair import PairServer
from image.host.wires import Carrier
from manager_vm.errors import ConfigError, VtpmManagerError

_IMAGES = Path("build/image")


def main() -> int:
    """Exit code 0, or that of the error."""
    args = _parser().parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
    logging.getLogger("image.host").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if args.verb == "run":
            _run(args)
        else:
            _pair(args.socket)
    except VtpmManagerError as error:
        print(f"image.host: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _run(args: argparse.Namespace) -> None:
    usable(Kind(args.hwtpm))
    if not (args.images / "manager/image.json").exists():
        raise ConfigError(f"there is no image in {args.images}; run ./build.sh image")
    narrator = demo.Narrator()
    with ExitStack() as stack:
        directory = args.dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vtpm-run-")))
        host = stack.enter_context(Host(directory, args.images, firmware=True, kind=Kind(args.hwtpm)))
        stack.enter_context(Desk(host))
        demo.run(host, Carrier(args.carrier), narrator)
        narrator.say("done")
        if args.keep:
            narrator.say(f"both VMs stay up until Ctrl-C; try: .venv/bin/vtpmctl -m {directory} list")
            threading.Event().wait()


def _pair(path: Path) -> None:
    server = PairServer(path.absolute())
    print(f"READY {path}", flush=True)
    try:
        threading.Event().wait()
    finally:
        server.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m image.host", description="The host side of the manager VM.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="boot manager and guests, show a guest using its TPM")
    run.add_argument("--dir", type=Path, help="keep everything (state disk, logs) here; default: a temporary directory")
    run.add_argument("--images", type=Path, default=_IMAGES, help="what the image build made (default: build/image)")
    run.add_argument("--carrier", choices=[str(each) for each in Carrier], default=str(Carrier.IVSHMEM))
    run.add_argument("--hwtpm", choices=[str(each) for each in Kind], default=str(Kind.EMULATOR), help="hardware TPM")
    run.add_argument("--keep", action="store_true", help="leave the VMs up until Ctrl-C")
    pair = verbs.add_parser("pair", help="serve one pair of ivshmem-doorbell devices for two QEMUs of your own")
    pair.add_argument("socket", type=Path, help="UNIX socket for both QEMUs' chardev")
    return parser


if __name__ == "__main__":
    sys.exit(main())
