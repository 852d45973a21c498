"""A ``dev`` manager whose network loses words of the hand-over: ``-m tests.integration.losing DIR``.

As long as DIR/lost names kinds (PREPARED, COMMIT, ...), what this manager sends of them is lost, and the connection
with it. Two managers speak to each other's own listeners there, so no relay can stand between.
"""

from __future__ import annotations

import sys
from pathlib import Path

from manager_vm import __main__
from manager_vm.errors import MigrationError
from manager_vm.server.peer_link import PeerLink
from manager_vm.wire.migration import Cause, Handover, Kind, Outer
from tests.integration.harness import Manager

_FILE = "lost"


def program(directory: Path) -> list[str]:
    """For Python: a manager on ``directory``."""
    return ["-m", "tests.integration.losing", str(directory)]


def lose(manager: Manager, *kinds: Kind) -> None:
    """What it sends of these is lost from now on; of no kinds: nothing is."""
    (manager.directory / _FILE).write_text(" ".join(kind.name for kind in kinds))


def main() -> int:
    directory = sys.argv[1]
    lost, send = Path(directory, _FILE), PeerLink.send

    def sent(self: PeerLink, message: Outer) -> None:
        if isinstance(message, Handover) and lost.exists() and message.kind.name in lost.read_text().split():
            self.cut()
            raise MigrationError(f"the network has lost {message.kind.name}", Cause.PEER_LOST.word)
        send(self, message)

    PeerLink.send = sent  # type: ignore[method-assign]
    return __main__.main(["dev", directory])


if __name__ == "__main__":
    sys.exit(main())
