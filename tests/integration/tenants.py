"""Tenants of a manager: an authority and an operator each, made with vtpmctl."""

from __future__ import annotations

from typing import Any

from tests.integration.harness import Manager


class Tenants:
    """Tenants of a manager: an authority and an operator each, made with vtpmctl."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.files = manager.directory.parent

    def add(self, name: str, *options: str) -> None:
        """A group with an operator of the same name who is its admin."""
        own = str(self.files / name)
        self.manager.ctl("authority", "init", own)
        self.person(name, "admin", name)
        found = self._enroll(
            str(self.manager.authority), "--group", name, "--authority", f"{own}/authority.pub", *options
        )
        self.manager.ctl("group", "add", found, f"{own}/operators/{name}.json")

    def person(self, name: str, role: str, group: str) -> str:
        """A key, and its enrolment by a group's authority; the latter's file."""
        self.manager.ctl("key", "new", str(self.files / f"{name}.key"))
        key = str(self.files / f"{name}.key.pub")
        return self._enroll(str(self.files / group), "--operator", name, "--key", key, "--role", role)

    def _enroll(self, directory: str, *options: str) -> str:
        found: str = self.manager.ctl("authority", "enroll", directory, *options)["file"]
        return found

    def ctl(self, name: str, *args: str) -> Any:
        """vtpmctl with somebody's key."""
        return self.manager.ctl("--key", str(self.files / f"{name}.key"), *args)
