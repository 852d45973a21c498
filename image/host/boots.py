"""How often a guest was powered on or reset: a number that only grows, kept through crashes of the host side."""

from __future__ import annotations

import os
from pathlib import Path

from manager_vm.errors import HostError


class BootCounter:
    """The number of the running boot, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.number = int(path.read_text()) if path.exists() else 0
        except ValueError:
            raise HostError(f"{path} holds no boot number; take the number that 'vtpmctl show' gives") from None

    def advance(self, beyond: int = 0) -> int:
        """The next boot's number (above ``beyond`` too), durable before it is told to anyone."""
        return self.adopt(max(self.number, beyond) + 1)

    def adopt(self, number: int) -> int:
        """The number of a boot that began elsewhere, durable."""
        new = self._path.with_suffix(".new")
        with open(new, "w") as file:
            file.write(str(number))
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._path)
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        self.number = number
        return number
