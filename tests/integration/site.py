"""Two managers between which vTPMs move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manager_vm.trust import order
from manager_vm.trust.signing import SigningKey
from tests.integration.harness import Manager


class Site:
    """Managers of one authority, each with its own hardware TPM."""

    def __init__(self, one: Manager, two: Manager) -> None:
        self.a, self.b = one, two
        self.platforms = {each: each.ctl("platform", "show")["platform"] for each in (one, two)}

    def order(self, source: Manager, to: Manager, name: str = "v", key: SigningKey | None = None) -> Path:
        shown = source.show(name)
        signer = key or SigningKey.load(source.authority / "authority.key")
        path = source.directory / "order.json"
        where = self.platforms[source], self.platforms[to]
        path.write_bytes(order.give(shown["uuid"], shown["generation"], *where, signer))
        return path

    def migrate(self, source: Manager, to: Manager, *, at: str = "", name: str = "v", given: Path | None = None) -> Any:
        ordered = given or self.order(source, to, name)
        return source.ctl("migrate", name, "--to", at or address(to), "--order", str(ordered))

    def where(self, uuid: str) -> list[tuple[Manager, str]]:
        """Each manager that has a record of this vTPM, and its state there."""
        rows = [(each, row) for each in (self.a, self.b) for row in each.ctl("list")]
        return [(each, row["state"]) for each, row in rows if row["uuid"] == uuid]


def address(manager: Manager) -> str:
    where: str = manager.ctl("status")["migration"]
    return where
