"""One run of a vTPM: a swtpm process, its directory, and the random state key that only this run has.

A response that follows a change of permanent state is released only after swtpm's file is on the disk
(swtpm itself never syncs). The key of a run is new, so a file of an older run can never be taken for it.
"""

from __future__ import annotations

import os
import uuid
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from manager_vm.crypto import Key
from manager_vm.errors import SwtpmError
from manager_vm.protocol.channel_server import SessionState
from manager_vm.store import atomic
from manager_vm.store.blobs import ParkedState
from manager_vm.vtpm import manufacture
from manager_vm.vtpm.manufacture import Firmware
from manager_vm.vtpm.sandbox import Sandbox
from manager_vm.vtpm.swtpm import StateBlobs, Swtpm

_STIR_SIZE = 48  # bytes of fresh randomness mixed in after a restore (at most 128, Part 3, 16.2)
_AUTH_SIZE = 32  # bytes of random platformAuth


@dataclass(frozen=True, slots=True)
class Launcher:
    """How runs are started: where, with which binary and limits. ``deadline`` in seconds per command.

    ``spawner``: one thread that lives as long as the manager; the kernel ends a swtpm when the thread that
    spawned it ends.
    """

    runs: Path
    binary: str
    deadline: float
    memory_mib: int
    own_uids: bool
    spawner: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, "spawner"))

    def sandbox(self, uid: int) -> Sandbox:
        """The sandbox of the vTPM with this uid."""
        return Sandbox(uid=uid if self.own_uids else None, memory_limit=self.memory_mib << 20)


class Run:
    """A living swtpm. Owned by one Vtpm; ``close`` ends it."""

    def __init__(self, launcher: Launcher, name: str, key: Key, swtpm: Swtpm) -> None:
        self.name = name
        self.key = key
        self._launcher = launcher
        self._swtpm = swtpm

    @classmethod
    def start(cls, launcher: Launcher, uid: int) -> Run:
        """A new process in a new directory under a new key; it has no TPM state yet."""
        name = str(uuid.uuid4())
        try:
            return cls._spawn(launcher, uid, name, Key.random())
        except SwtpmError:
            atomic.remove_tree(launcher.runs / name)
            raise

    @classmethod
    def reopen(cls, launcher: Launcher, uid: int, name: str, key: Key) -> Run:
        """A new process on the files that an earlier run left behind; they stay, whatever happens."""
        return cls._spawn(launcher, uid, name, key)

    @classmethod
    def _spawn(cls, launcher: Launcher, uid: int, name: str, key: Key) -> Run:
        directory = launcher.runs / name
        sandbox = launcher.sandbox(uid)
        atomic.make_directory(directory, sandbox.uid)
        spawned = launcher.spawner.submit(Swtpm.spawn, directory, key.reveal(), sandbox, binary=launcher.binary)
        return cls(launcher, name, key, spawned.result())

    def restore(self, state: ParkedState) -> None:
        """Load a parked vTPM into this new process and continue it, with its own random numbers from here on."""
        self._swtpm.set_state(StateBlobs(state.permanent, state.volatile, state.savestate))
        self._swtpm.init()
        manufacture.stir(self, os.urandom(_STIR_SIZE))
        self.sync()

    def restore_permanent(self, permanent: bytes) -> None:
        """Load a vTPM that has no power into this new process; ``power_on`` follows."""
        self._swtpm.set_state(StateBlobs(permanent, b"", b""))

    def snapshot(self, session: SessionState) -> ParkedState:
        """All state of the TPM as it is now; the process goes on."""
        blobs = self._swtpm.get_state()
        return ParkedState(blobs.permanent, blobs.volatile, blobs.savestate, session)

    def permanent(self) -> bytes:
        """The permanent state alone; unlike ``snapshot`` this needs no room on the disk."""
        return self._swtpm.get_permanent()

    def initialise(self) -> None:
        """_TPM_Init without a change of state: for a run that is only read."""
        self._swtpm.init()

    def power_cycle(self, firmware: Firmware, *, shut_down: bool) -> None:
        """_TPM_Init, as a reset of the machine does it, after an orderly shutdown (no dictionary-attack strike).

        ``shut_down``: the guest has done that as its last command, with STATE perhaps, and its firmware will go on.
        """
        if not shut_down:
            manufacture.orderly_shutdown(self)
        self._swtpm.stop()
        self.power_on(firmware)

    def power_on(self, firmware: Firmware) -> None:
        """_TPM_Init and what firmware does: Startup(CLEAR), a random platformAuth that nobody learns."""
        self._swtpm.init()
        if firmware is Firmware.OURS:
            manufacture.power_on(self, os.urandom(_AUTH_SIZE))
        self.sync()

    def execute(self, command: bytes) -> bytes:
        """One command at locality 0, blocking; SwtpmError if the process died or missed its deadline."""
        response = self._swtpm.execute(command, deadline=self._launcher.deadline)
        self._settle()
        return response

    def begin(self, command: bytes, locality: int) -> None:
        """Hand a command to swtpm without waiting; ``finish`` fetches the answer."""
        self._swtpm.start_execute(command, locality)

    def finish(self) -> bytes | None:
        """The answer, or None while it is not complete; durable changes are on the disk when this returns it."""
        response = self._swtpm.finish_execute()
        if response is not None:
            self._settle()
        return response

    def fileno(self) -> int:
        """Readable when ``finish`` has something to fetch or the process died."""
        return self._swtpm.fileno()

    def died(self) -> bool:
        """Whether the process has ended by itself."""
        return self._swtpm.died()

    @property
    def pid(self) -> int:
        """Process id of swtpm."""
        return self._swtpm.pid

    def sync(self) -> None:
        """Bring swtpm's file to the disk."""
        with atomic.store_errors("sync the vTPM's state file"):
            self._swtpm.state_file.sync()
            atomic.sync_directory(self._launcher.runs)

    def _settle(self) -> None:
        if self._swtpm.state_file.changed():
            with atomic.store_errors("sync the vTPM's state file"):
                self._swtpm.state_file.sync()

    def kill(self) -> None:
        """SIGKILL, for a process that missed its deadline."""
        self._swtpm.kill()

    def close(self) -> None:
        """End the process; its files stay."""
        self._swtpm.close()

    def discard(self) -> None:
        """End the process and remove its files: the run was never committed."""
        self._swtpm.close()
        atomic.remove_tree(self._launcher.runs / self.name)
