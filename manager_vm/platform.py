"""The platform under the manager: its hardware TPM, or the stand-in that ``dev`` starts."""

from __future__ import annotations

import logging
from pathlib import Path

from manager_vm.config import Config
from manager_vm.errors import ConfigError
from manager_vm.keys.hwtpm.connection import Connection
from manager_vm.trust import event_log
from manager_vm.vtpm.standin import VENDOR_CA, Standin

log = logging.getLogger(__name__)

_SECURITY = Path("/sys/kernel/security")


class Platform:
    """``tpm``: the hardware TPM. ``close`` lets go of it, and takes the power of a stand-in.

    ``vendor_ca``: the certificate (PEM) of who has made a stand-in; None for a TPM that others have made.
    """

    def __init__(self, config: Config) -> None:
        kind, _, where = config.hwtpm.partition(":")
        self._standin: Standin | None = None
        self._event_log: Path | None = None
        self.vendor_ca: Path | None = None
        if kind == "device" and where:
            self.tpm = Connection(config.hwtpm)
            number = where.rstrip("0123456789")
            self._event_log = _SECURITY / f"tpm{where[len(number) :]}" / "binary_bios_measurements"
        elif kind == "swtpm" and where:
            self._standin = Standin(Path(where), config.swtpm)
            self.tpm = Connection(self._standin)
            self.vendor_ca = Path(where) / VENDOR_CA
        else:
            raise ConfigError(f"hwtpm = {config.hwtpm!r} names no hardware TPM; use device:PATH, or swtpm:DIR for dev")

    def event_log(self) -> bytes:
        """What firmware and boot stubs have measured, as the kernel keeps it; b"" if it cannot be had."""
        if self._event_log is None:
            return b""
        try:
            with open(self._event_log, "rb") as file:
                data = file.read(event_log.MAX_SIZE + 1)
        except OSError as error:
            log.warning("no event log (%s: %s); evidence goes without it", self._event_log, error.strerror)
            return b""
        return data if len(data) <= event_log.MAX_SIZE else b""

    def close(self) -> None:
        """Idempotent."""
        self.tpm.close()
        if self._standin is not None:
            self._standin.close()
