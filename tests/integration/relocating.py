"""Two platforms, a manager that moves from one to the other with its disk, and the receiver there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from manager_vm.ctl.client import Client
from manager_vm.trust import relocation
from manager_vm.trust.signing import SigningKey
from tests.integration.harness import Manager
from tests.integration.site import address


class Platforms:
    """``a``: the manager that moves, with its platform's TPM. ``b``: the receiver on the other platform.

    A disk that was carried to platform b is run by ``arrive``, over b's TPM and instead of the receiver.
    """

    def __init__(self, a: Manager, b: Manager) -> None:
        self.a, self.b = a, b
        self.names = {each: each.ctl("platform", "show")["platform"] for each in (a, b)}
        self.arrived: list[Manager] = []

    def order(self, key: SigningKey | None = None, **changed: Any) -> bytes:
        """From a to b, as often as a has moved."""
        status = self.a.ctl("status")
        said = {
            "manager": status["manager"],
            "relocations": status["relocation"]["relocations"],
            "source": self.names[self.a],
            "destination": self.names[self.b],
            **changed,
        }
        signer = key or SigningKey.load(self.a.authority / "authority.key")
        return relocation.give(said["manager"], said["relocations"], said["source"], said["destination"], signer)

    def agree(self, **changed: Any) -> dict[str, Any]:
        """The source and the receiver agree."""
        args = {"order": self.order(), "to": address(self.b), **changed}
        found: dict[str, Any] = host(self.a, "relocate", **args)
        return found

    def copy(self, manager: Manager, name: str) -> Path:
        """A copy of a manager's disk, as its host could make it at any moment."""
        target = manager.directory.parent / f"copy-{name}"
        shutil.copytree(manager.state, target, ignore=shutil.ignore_patterns("*.sock"))
        return target

    def at(self, platform: Manager, disk: Path, name: str, migration: str = "127.0.0.1:0") -> Manager:
        """A manager that would run ``disk`` over the TPM of ``platform``; it is not started."""
        directory = platform.directory.parent / name
        directory.mkdir(mode=0o711)
        shutil.move(disk, directory / "state")
        where = {"hwtpm": f"swtpm:{platform.directory}/hwtpm", "migration": migration}
        manager = Manager(directory, where)
        self.arrived.append(manager)
        return manager

    def close(self) -> None:
        """End all."""
        for each in (self.a, self.b, *self.arrived):
            if each.running:
                each.stop()


def host(manager: Manager, verb: str, **args: Any) -> Any:
    """A request of the host side."""
    with Client.connect(manager.directory / "host.sock") as client:
        return client.call(verb, **args)
