"""The hardware TPM of ``dev``: a swtpm of its own that lives as long as this process, with its state in DIR/hwtpm.

Each start is a power-on of the platform. It has no firmware, so PCRs are zero: it stands in for a TPM's behaviour, and
protects nothing. As a vendor does, its maker leaves EK certificates in NV; the CA's key is forgotten with that, its
certificate stays in DIR/hwtpm/vendor-ca.pem.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from manager_vm.crypto import KEY_SIZE
from manager_vm.errors import SwtpmError
from manager_vm.keys.ek_ca import EkCa
from manager_vm.store import atomic
from manager_vm.vtpm import manufacture
from manager_vm.vtpm.sandbox import Sandbox
from manager_vm.vtpm.swtpm import Swtpm
from manager_vm.wire import tpm

VENDOR_CA = "vendor-ca.pem"


class Standin:
    """A powered TPM (``execute``); ``close`` takes its power. Start it on a thread that lives as long as it."""

    def __init__(self, directory: Path, binary: str) -> None:
        if not any(directory.glob("*")):
            _manufacture(directory, binary)
        self._swtpm = Swtpm.spawn(directory, _key(directory), Sandbox(None), binary=binary)
        try:
            self._swtpm.init()
            manufacture.demand(self._swtpm, tpm.startup())
        except SwtpmError:
            self._swtpm.close()
            raise

    def execute(self, command: bytes) -> bytes:
        """One command; what it changes for good is on the disk when this returns, as in a real TPM."""
        response = self._swtpm.execute(command)
        if self._swtpm.state_file.changed():
            with atomic.store_errors("sync the stand-in hardware TPM's state"):
                self._swtpm.state_file.sync()
        return response

    def close(self) -> None:
        """An orderly shutdown; idempotent."""
        if not self._swtpm.died():
            manufacture.orderly_shutdown(self._swtpm)
        self._swtpm.close()


def _manufacture(directory: Path, binary: str) -> None:
    """A new TPM with EKs, whole or not at all: made beside its place."""
    made = directory.with_name(f".{directory.name}.new")
    with atomic.store_errors(f"make the stand-in hardware TPM {directory}"):
        shutil.rmtree(made, ignore_errors=True)
        atomic.make_directory(made)
        ca = EkCa.create("stand-in TPM vendor")
        with Swtpm.spawn(made, _key(made), Sandbox(None), binary=binary) as swtpm:
            swtpm.init()
            manufacture.manufacture(swtpm, ca)
            swtpm.state_file.sync()
        atomic.write_file(made / VENDOR_CA, ca.pem)
        os.rename(made, directory)
        atomic.sync_directory(directory.parent)


def _key(directory: Path) -> bytes:
    """swtpm's key for its state file; it lies beside it, as the seed of an emulated TPM lies with its host."""
    path = directory / "key"
    if (key := atomic.read_file(path, KEY_SIZE)) is None:
        key = os.urandom(KEY_SIZE)
        atomic.write_file(path, key)
    return key
