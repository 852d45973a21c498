"""The host link of a manager as the shim uses it: what is this VM's boot, and here is a new one (wire/admin).

Each call has a connection of its own, since the socket of a manager VM takes one client at a time, and a limit: QEMU's
main loop waits meanwhile.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from manager_vm.errors import (
    BusyError,
    ConfigError,
    MigrationError,
    ProtocolError,
    StateError,
    UnknownVtpmError,
    UnreachableError,
    VtpmManagerError,
)
from manager_vm.protocol.lifecycle import State
from manager_vm.wire import admin, framing
from manager_vm.wire.migration import Cause

log = logging.getLogger(__name__)

_RETRY = 0.2  # seconds between two tries
_REDEEM = 60.0  # seconds to pull a vTPM: two hardware TPMs quote
_CHUNK = 65536
# a manager that starts, a long command, another one's bytes, a vTPM that is on its way or that another has reset
_PASSES = (UnreachableError, BusyError, ProtocolError, StateError)


class HostLink:
    """``path``: the socket. ``name``: the vTPM, ``vm``: UUID of its VM, "" if it is not said.

    ``stop``: a descriptor that is readable when we are to end. ``turn``: of those who share the socket.
    """

    def __init__(self, path: str, name: str, vm: str, stop: int, turn: threading.Lock) -> None:
        self._path = path
        self._name = name
        self._vm = vm
        self._stop = stop
        self._turn = turn

    def of(self, stop: int) -> HostLink:
        """The same, which ends at another descriptor."""
        return HostLink(self._path, self._name, self._vm, stop, self._turn)

    def record(self, limit: float) -> dict[str, Any]:
        """The vTPM as ``list`` has it, within ``limit`` seconds."""
        return self._record(time.monotonic() + limit)

    def power_on(self, limit: float) -> int:
        """Report a boot that is none of those before, within ``limit`` seconds: its number, acknowledged.

        The manager's record says which was the last one: it is durable, knows of an operator's boots too, and survives
        us. An outcome that is not known does no harm: the same number is said again, and each is applied once.
        """
        number = 0

        def once(deadline: float) -> int:
            nonlocal number
            number = max(number, int(self._record(deadline)["boot"]) + 1)
            self._boot(number, deadline)
            return number

        return self._insist(once, limit)

    def waits_for_ticket(self, limit: float) -> bool:
        """Whether the vTPM is not here, or parked for whoever has a ticket, or has come and was not asked for yet."""
        try:
            found = self.record(limit)
        except UnknownVtpmError:
            return True
        return bool(found["ticket"]) or found["state"] == State.ARRIVING

    def expect(self, limit: float, *, over: bool = False) -> None:
        """The VM may come with a ticket: if its vTPM is elsewhere managers agree beforehand; ``over``: it does not."""
        self._call("expect", {"vm": self._vm, "over": over}, time.monotonic() + limit)

    @property
    def _channel(self) -> str:
        return f"shim:{self._name}"

    @property
    def names_vm(self) -> bool:
        """Whether it is known whose vTPM this is."""
        return bool(self._vm)

    def ticket(self, limit: float) -> bytes:
        """Have the vTPM parked, or still and about to be: its VM leaves."""
        args = {"name": self._name, "vm": self._vm}
        return bytes(self._call("ticket", args, time.monotonic() + limit)["ticket"])

    def redeem(self, ticket: bytes) -> int:
        """The VM has come with this ticket: its boot, within a minute. ConfigError if the ticket is another vTPM's."""
        args = {"ticket": ticket, "vm": self._vm, "channel": self._channel}
        found = self._call("redeem", args, time.monotonic() + _REDEEM)
        if found["name"] != self._name:
            raise ConfigError(f"this VM has come with a ticket of vTPM {found['name']!r}, and here is {self._name!r}")
        return int(found["boot"])

    def void(self, limit: float) -> None:
        """The VM that had come has gone without a command."""
        self._call("ticket_void", {"name": self._name}, time.monotonic() + limit)

    def name_boot(self, number: int, limit: float, ticket: bytes = b"") -> None:
        """Say to a manager that was away that boot ``number`` runs.

        ``ticket``: with which its VM has come: a manager that ended before the vTPM was needed has given it back.
        """
        try:
            self._boot(number, time.monotonic() + limit)
        except UnknownVtpmError:
            if not ticket:
                raise
            self.redeem(ticket)
            self._boot(number, time.monotonic() + limit)

    def _record(self, deadline: float) -> dict[str, Any]:
        for record in self._call("list", {}, deadline):
            if record["name"] == self._name:
                return dict(record)
        raise UnknownVtpmError(f"the manager at {self._path} has no vTPM {self._name!r}; create and attach it first")

    def _boot(self, number: int, deadline: float) -> None:
        """Wire it, too: a manager that was started anew knows of no channel."""
        wire = {"name": self._name, "channel": self._channel, "boot": number, "vm": self._vm}
        self._call("attach", wire, deadline)

    def _insist(self, request: Callable[[float], int], limit: float) -> int:
        """Repeat what may pass, until the limit."""
        deadline = time.monotonic() + limit
        while True:
            try:
                return request(deadline)
            except _PASSES as error:
                if time.monotonic() + _RETRY >= deadline:
                    raise
                log.info("%s; trying again", error)
            self._wait(None, time.monotonic() + _RETRY)

    def _call(self, verb: str, args: dict[str, Any], deadline: float) -> Any:
        if not self._turn.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
            raise UnreachableError("other guests of this host keep the host link busy")
        try:
            return self._exchange(verb, args, deadline)
        finally:
            self._turn.release()

    def _exchange(self, verb: str, args: dict[str, Any], deadline: float) -> Any:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            id_ = int.from_bytes(os.urandom(7), "little")
            try:
                connection.connect(self._path)
                connection.sendall(framing.encode(admin.to_frame(admin.Request(id_, verb, args))))
                return self._reply(connection, id_, deadline)
            except OSError as error:
                raise UnreachableError(f"no manager answers at {self._path} ({error.strerror or error})") from None

    def _reply(self, connection: socket.socket, id_: int, deadline: float) -> Any:
        decoder = framing.Decoder(admin.MAX_BODY, resync=True)
        while True:
            if not self._wait(connection, deadline):
                raise UnreachableError(f"the manager at {self._path} has not answered in time")
            data = connection.recv(_CHUNK)
            if not data:
                raise UnreachableError(f"the manager at {self._path} closed the connection")
            for frame in decoder.feed(data):
                message = _message(frame)
                if isinstance(message, admin.Reply) and message.id == id_:
                    if message.error is not None:
                        raise message.error
                    return message.ok

    def _wait(self, connection: socket.socket | None, deadline: float) -> bool:
        """Whether something can be read before the deadline; UnreachableError if we are to end."""
        poller = select.poll()
        poller.register(self._stop, select.POLLIN)
        if connection is not None:
            poller.register(connection, select.POLLIN)
        ready = {fd for fd, _ in poller.poll(max(deadline - time.monotonic(), 0.0) * 1000 + 1)}
        if self._stop in ready:
            raise UnreachableError("told to end")
        return bool(ready)


def is_final(error: VtpmManagerError) -> bool:
    """Whether this answer to ``name_boot`` says that the vTPM has gone on elsewhere, and does not come for this VM."""
    void = isinstance(error, MigrationError) and error.cause == Cause.REPLAYED.word
    return void or isinstance(error, UnknownVtpmError)


def _message(frame: framing.Frame) -> admin.AdminMessage | None:
    """None for a frame that is not for us: ours answers an id that only we know."""
    try:
        return admin.from_frame(frame)
    except ProtocolError:
        return None
