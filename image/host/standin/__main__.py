"""``python -m image.host.standin DIR``: serve DIR/control.sock; the TPM's state lies in DIR. Ends at SIGTERM."""

from __future__ import annotations

import argparse
import logging
import resource
import signal
import socket
import sys
from pathlib import Path

from image.host.standin.server import Server, serve
from image.host.standin.session import Arriving
from manager_vm.errors import VtpmManagerError


def main() -> int:
    """Exit code 0, or that of the error."""
    parser = argparse.ArgumentParser(prog="python -m image.host.standin", description="A host's hardware TPM.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--arriving", choices=[str(each) for each in Arriving], default=str(Arriving.RESTORE))
    parser.add_argument("--owner", type=int, help="descriptor of a seqpacket socket: end when its other end closes")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (most, most)
    )  # swtpm 0.7.1 loses a descriptor at each INIT but the first
    owner = None if args.owner is None else socket.socket(fileno=args.owner)
    try:
        serve(args.directory.absolute(), Arriving(args.arriving), owner, _ready)
    except VtpmManagerError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _ready(server: Server) -> None:
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    signal.signal(signal.SIGINT, lambda *_: server.stop())


if __name__ == "__main__":
    sys.exit(main())
