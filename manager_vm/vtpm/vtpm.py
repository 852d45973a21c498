"""One vTPM of a living manager: its run (if any), its channel's session, and the gate in front of both.

A command holds the vTPM's lock from ``begin`` to ``release``. Whoever changes the vTPM (park, reset, ...) closes
the gate first, then waits for the lock: new commands are refused meanwhile (their seq stays free), none is cut short.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from manager_vm.errors import BusyError, LocalProtocolError
from manager_vm.protocol.channel_server import ChannelServer, SessionState
from manager_vm.protocol.lifecycle import State
from manager_vm.store.records import VtpmRecord
from manager_vm.vtpm.run import Run
from manager_vm.wire import tpm
from manager_vm.wire.channel import Reason

_NOT_SERVING = {
    State.OFF: Reason.NO_BOOT,
    State.PARKED: Reason.PARKED,
    State.QUARANTINED: Reason.QUARANTINED,
    State.GONE: Reason.MOVED,
}


class Vtpm:
    """Thread-safe: one channel thread and any number of admin threads."""

    def __init__(self, uuid: str, name: str, state: State, boot: int = 0) -> None:
        self.uuid = uuid
        self.name = name
        self.state = state
        self.boot = boot  # newest boot number applied
        self.run: Run | None = None
        self.channel = ChannelServer()
        self.named = 0  # the boot that the host side has named as the running one, since this manager started
        self.live = False  # a front end was heard lately on its channel
        self._gate: Reason | None = None
        self._lock = threading.Lock()

    def adopt(self, run: Run | None, record: VtpmRecord, session: SessionState | None, *, resumed: bool) -> None:
        """A commit holds: it is what the record says, with this run. ``session``: that goes on, ``resumed`` or anew."""
        if self.run is not None and self.run is not run:
            self.run.close()
        self.run, self.state, self.boot = run, record.state, record.boot
        if session is not None:
            self.channel = ChannelServer(session, resumed=resumed)

    def end(self) -> None:
        """No process any more; idempotent."""
        if self.run is not None:
            self.run.close()
            self.run = None

    @contextlib.contextmanager
    def changing(self, reason: Reason, timeout: float) -> Iterator[None]:
        """Keep commands out while the vTPM is changed; BusyError if the present one takes over ``timeout`` seconds."""
        self._gate = reason
        try:
            if not self._lock.acquire(timeout=timeout):
                raise BusyError(f"vTPM {self.name!r} is executing a long command; try again later")
            try:
                yield
            finally:
                self._lock.release()
        finally:
            self._gate = None

    def begin(self, automaton: ChannelServer, command: bytes, locality: int) -> Reason | bytes | None:
        """Start a guest's command: None = started (``fileno``, ``finish``, ``release`` follow), bytes = the answer,
        else refused. SwtpmError: the process is dead; ``give_up`` follows. ``automaton`` took the command: if the
        vTPM has another one by now, it was resumed or reset meanwhile, and the command is of a time before.
        """
        if self._gate is not None or not self._lock.acquire(blocking=False):
            return self._gate or Reason.BUSY
        outcome: Reason | bytes | None = Reason.STARTING
        try:
            outcome = self._refusal() if automaton is self.channel else Reason.QUIESCED
            if outcome is None and self.run is not None:
                self.run.begin(command, locality)
        finally:
            if outcome is not None:
                self._lock.release()
        return outcome

    def _refusal(self) -> Reason | bytes | None:
        if self.state is State.FAILED:
            return tpm.error_response(tpm.RC.TPM_RC_FAILURE)
        if self.state is not State.RUNNING or self.run is None:
            return _NOT_SERVING.get(self.state, Reason.STARTING)
        return None if self.boot_named else Reason.NO_BOOT

    @property
    def boot_named(self) -> bool:
        """Whether the host side has said that the newest boot applied is the one that runs."""
        return 0 < self.named == self.boot

    def fileno(self) -> int:
        """The running process's data descriptor; only between ``begin`` and ``finish``."""
        return self._running().fileno()

    def finish(self) -> bytes | None:
        """The answer to the command begun, None while it is not complete."""
        return self._running().finish()

    def give_up(self) -> None:
        """The command begun has no answer: the process died or missed its deadline; it is killed for certain."""
        self._running().kill()
        self.state = State.FAILED

    def release(self) -> None:
        """The command begun is over and its session knows the outcome: the vTPM is free for others."""
        self._lock.release()

    def _running(self) -> Run:
        if self.run is None:
            raise LocalProtocolError(f"vTPM {self.name!r} has no process")
        return self.run
