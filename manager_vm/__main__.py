"""``python -m manager_vm daemon`` (in the appliance), ``python -m manager_vm dev DIR`` (a manager in this process)."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from manager_vm import config, daemon
from manager_vm.errors import VtpmManagerError

_DEV = """
Run a manager in this process, no VM. Prints READY when it serves.

  DIR/admin.sock          admin link           vtpmctl -m DIR ...
  DIR/host.sock           host link            (attach, detach, boot)
  DIR/channels/NAME.sock  a guest's channel    python -m guest_frontend pipe unix:DIR/channels/NAME.sock
  DIR/state               what the state disk of an appliance holds
  DIR/../authority        made if missing (mode 0700): the authority of all managers in that folder, and an operator
                          whose key vtpmctl uses by itself

SIGTERM and SIGINT park every vTPM; the next start resumes them.
"""


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, or the error class's (see vtpmctl --help)."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=args.log_level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        if args.mode == "dev":
            settings = config.for_dev(args.dir.absolute(), root=os.geteuid() == 0)
        else:
            settings = config.load(args.config)
        daemon.run(settings, announce=args.mode == "dev")
    except VtpmManagerError as error:
        print(f"vtpm-manager: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m manager_vm", description="The vTPM manager.")
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    modes = parser.add_subparsers(dest="mode", required=True)
    dev = modes.add_parser("dev", description=_DEV, formatter_class=argparse.RawDescriptionHelpFormatter)
    dev.add_argument("dir", type=Path, metavar="DIR")
    service = modes.add_parser("daemon", description="Run as the appliance's service.")
    service.add_argument("--config", type=Path, default=Path("/etc/vtpm-manager/config.toml"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
