"""What an authority has signed about recovery: recovery/N.json, recipients and orders in the order of their serials."""

from __future__ import annotations

from pathlib import Path

from manager_vm.errors import ConfigError
from manager_vm.trust import envelope, recovery
from manager_vm.trust.authority import RECOVERY, AuthorityDirectory, create, numbered, read_statement
from manager_vm.trust.recovery import Order, Recipient
from manager_vm.trust.signing import VerifyKey


class RecoveryRegister:
    """Recipients and orders of one authority."""

    def __init__(self, authority: AuthorityDirectory) -> None:
        self._authority = authority
        self._folder = authority.path / RECOVERY

    def name_recipient(self, key: VerifyKey) -> tuple[Path, Recipient]:
        """Sign that managers wrap their keys to ``key``, from now on and to no other; the file.

        ConfigError for a key that signs: one that decrypts is used for nothing else.
        """
        signs = {self._authority.public.id, *(each.key.id for each in self._authority.operators().values())}
        if key.id in signs:
            raise ConfigError("this key signs (the authority's, or an operator's); make one for recovery: 'key new'")
        with self._authority.locked():
            path, serial = self._next()
            create(path, recovery.name_recipient(key, serial, self._authority.key))
        return path, self._authority.said(path, recovery.verify_recipient)

    def order(self, manager: str, old: str, new: str, reason: str, *, again: bool = False) -> tuple[Path, Order]:
        """Sign that this manager goes from one hardware TPM to another (Names of their SRKs); the file.

        ConfigError if it was ordered to go elsewhere from there, unless ``again``: two managers could follow.
        """
        with self._authority.locked():
            elsewhere = [each for each in self._orders() if (each.manager, each.old.hex()) == (manager, old)]
            elsewhere = [each for each in elsewhere if each.new.hex() != new]
            if elsewhere and not again:
                raise ConfigError(
                    f"order {elsewhere[-1].serial} sends this manager from there to {elsewhere[-1].new.hex()}: if it "
                    "was used, the manager goes on there, and this order would make a second one; if not, use --again"
                )
            path, serial = self._next()
            bits = sum(1 << number for number in self._authority.revoked())
            signed = recovery.order(manager, old, new, self._authority.key, revoked=bits, reason=reason, serial=serial)
            create(path, signed)
        return path, self._authority.said(path, recovery.verify_order)

    def _next(self) -> tuple[Path, int]:
        serial = max(numbered(self._folder), default=0) + 1
        return self._folder / f"{serial}.json", serial

    def _orders(self) -> list[Order]:
        paths = [self._folder / f"{number}.json" for number in sorted(numbered(self._folder))]
        kinds = {path: envelope.kind_of(read_statement(path)) for path in paths}
        return [self._authority.said(path, recovery.verify_order) for path in paths if kinds[path] == recovery.ORDER]
