"""The platform under the manager: its hardware TPM, or the stand-in that ``dev`` starts."""

from __future__ import annotations

from pathlib import Path

from manager_vm.config import Config
from manager_vm.errors import ConfigError
from manager_vm.keys.hwtpm.connection import Connection
from manager_vm.vtpm.standin import VENDOR_CA, Standin


class Platform:
    """``tpm``: the hardware TPM. ``close`` lets go of it, and takes the power of a stand-in.

    ``vendor_ca``: the certificate (PEM) of who has made a stand-in; None for a TPM that others have made.
    """

    def __init__(self, config: Config) -> None:
        kind, _, where = config.hwtpm.partition(":")
        self._standin: Standin | None = None
        self.vendor_ca: Path | None = None
        if kind == "device" and where:
            self.tpm = Connection(config.hwtpm)
        elif kind == "swtpm" and where:
            self._standin = Standin(Path(where), config.swtpm)
            self.tpm = Connection(self._standin)
            self.vendor_ca = Path(where) / VENDOR_CA
        else:
            raise ConfigError(f"hwtpm = {config.hwtpm!r} names no hardware TPM; use device:PATH, or swtpm:DIR for dev")

    def close(self) -> None:
        """Idempotent."""
        self.tpm.close()
        if self._standin is not None:
            self._standin.close()
