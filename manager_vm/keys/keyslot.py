"""The keyslot: where the root key rests while the manager is off, and the only way to a ``RootKey``.

``KeyFile`` keeps it in a file on the state disk: whoever reads that disk has it. Its border (``open``,
``create``) is that of a keyslot sealed to the hardware TPM.
"""

from __future__ import annotations

from pathlib import Path

from manager_vm.crypto import KEY_SIZE, Key
from manager_vm.errors import NoKeyslotError
from manager_vm.store import atomic


class RootKey(Key):
    """The key under which all others stand. Only a keyslot makes one."""

    __slots__ = ()


class KeyFile:
    """A keyslot that is a plain 32-byte file (mode 0600)."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def exists(self) -> bool:
        """Whether a root key was made here before."""
        return self._path.exists()

    def create(self) -> RootKey:
        """Make and keep a new root key; the caller has checked that no state exists yet."""
        root = RootKey(Key.random().reveal())
        atomic.write_file(self._path, root.reveal())
        return root

    def open(self) -> RootKey:
        """The root key; NoKeyslotError if it is missing or damaged."""
        data = atomic.read_file(self._path, KEY_SIZE)
        if data is None or len(data) != KEY_SIZE:
            raise NoKeyslotError(
                f"the key file {self._path} is missing or damaged; restore it, without it no vTPM can be opened"
            )
        return RootKey(data)
