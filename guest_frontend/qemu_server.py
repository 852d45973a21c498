"""The shim's loop: one QEMU's two sockets, the channel, the host link. No rules (see ``qemu_session``).

What QEMU's main loop waits for is bounded: INIT by ``INIT_LIMIT``, everything else is answered at once.
"""

from __future__ import annotations

import logging
import select
import socket
import time
from collections.abc import Callable
from typing import TypeVar

from guest_frontend.host_link import HostLink, is_final
from guest_frontend.link import Link
from guest_frontend.qemu_session import Answer, Begins, Execute, GoOn, Leave, PowerOn, Redeem, Session
from manager_vm.errors import RemoteProtocolError, VtpmManagerError
from manager_vm.vchan.emulator import Connection
from manager_vm.wire import swtpm as wire
from manager_vm.wire import tpm
from manager_vm.wire.swtpm import Cmd, Request

log = logging.getLogger(__name__)

T = TypeVar("T")
INIT_LIMIT = 10.0  # seconds for the manager to acknowledge a boot, or to park a vTPM; QEMU's main loop waits
COMMAND_LIMIT = 150.0  # seconds for a command that was written; the manager's own limit is 120
_NAME_LIMIT = 1.0  # seconds for telling a manager that was away which boot runs
_PATIENCE = 5.0  # seconds for the rest of a message, or for QEMU to take an answer
_FAILURE = tpm.error_response(tpm.RC.TPM_RC_FAILURE)

Connected = Callable[[Callable[[], bool]], Link]  # a link to the vTPM; what it calls first on each new connection


class Power:
    """A boot of the VM: its number, its way to the vTPM, and the command under way."""

    def __init__(self, number: int, connected: Connected, host: HostLink, ticket: bytes = b"") -> None:
        self._ticket = ticket  # with which its VM has come
        self.since: float | None = None  # when the command under way came
        self._number = number
        self._connected = connected
        self._host = host
        self._named = True  # the manager has just acknowledged it
        self._gone = False  # the vTPM is elsewhere, for good
        self.link = connected(self._introduce)

    @property
    def lost(self) -> bool:
        """Whether the command under way was written and nobody will answer it."""
        return self._gone and self.link.written

    def give_up(self) -> None:
        """The command under way has no answer. A new session: the old one's answer is never taken for another's."""
        self.since = None
        self.link.close()
        self.link = self._connected(self._introduce)

    def _introduce(self) -> bool:
        """A manager that was away is told which boot runs, and on which channel, before the first command."""
        if not self._named:
            try:
                self._host.name_boot(self._number, _NAME_LIMIT, self._ticket)
            except VtpmManagerError as error:
                log.warning("the manager does not take it that boot %d runs: %s", self._number, error)
                self._gone = is_final(error)
                return False
        self._named = self._gone = False  # for the next connection
        return True


class Server:
    """One QEMU at a time; one more is turned away. ``stop``: readable when it is to end."""

    def __init__(self, listener: socket.socket, connected: Connected, host: HostLink, stop: int) -> None:
        self._listener = listener
        self._connected = connected
        self._host = host
        self._stop = stop
        self._client: Connection | None = None
        self._session = Session()
        self._power: Power | None = None
        self._boot: int | None = None  # of the VM that has come
        self._ticket = b""  # of that VM

    def loop(self) -> None:
        """Serve until ``stop`` is readable."""
        while self._stop not in (ready := self._wait()):
            if self._power is not None:
                self._answered(self._power.link.step())
            if self._client is not None and self._client.control.fileno() in ready:
                self._guarded(self._client, self._control)
            if self._client is not None and self._data_fd in ready:
                self._guarded(self._client, self._data)
            if self._listener.fileno() in ready:
                self._accept()
            self._sweep()

    def close(self) -> None:
        """Let go of QEMU and of the vTPM."""
        self._listener.close()
        self._drop()

    @property
    def _busy(self) -> bool:
        return self._power is not None and self._power.since is not None

    @property
    def _data_fd(self) -> int:
        """-1 without a data socket, and while a command is under way: QEMU's next one waits in the socket."""
        data = self._client.data if self._client is not None else None
        return -1 if data is None or self._busy else data.fileno()

    def _wait(self) -> set[int]:
        """Until something happens."""
        poller = select.poll()
        fds = [self._stop, self._listener.fileno(), self._data_fd]
        until = [3600.0]
        if self._client is not None:
            fds.append(self._client.control.fileno())
            if self._client.since is not None:
                until.append(self._client.since + _PATIENCE - time.monotonic())
        if self._power is not None:
            fds.append(self._power.link.fileno())
            until.append(self._power.link.timeout())
        for fd in fds:
            if fd >= 0:
                poller.register(fd, select.POLLIN)
        return {fd for fd, _ in poller.poll(max(min(until), 0.0) * 1000 + 1)}

    # -- QEMU -----------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        """A QEMU that has closed its socket makes room; its SHUTDOWN, if unread, would change nothing."""
        try:
            control, _ = self._listener.accept()
        except OSError as error:
            log.error("a QEMU cannot be accepted: %s", error.strerror)
            time.sleep(0.2)  # too many open files, for instance: it passes
            return
        if self._client is not None and not _has_left(self._client.control):
            log.warning("another QEMU is turned away: this vTPM has one already")
            control.close()
            return
        self._drop()
        self._client, self._session = Connection(control, _PATIENCE), Session(movable=self._host.names_vm)

    def _guarded(self, client: Connection, handle: Callable[[Connection], None]) -> None:
        """What QEMU does wrong ends its connection."""
        try:
            handle(client)
        except RemoteProtocolError as error:
            log.warning("QEMU is let go: %s", error)
            self._drop()
        except OSError as error:
            log.warning("QEMU is let go: %s", error.strerror or error)
            self._drop()

    def _drop(self) -> None:
        client, self._client = self._client, None
        self._power_off()
        if self._session.expected:
            self._told("the manager goes on waiting for this VM", lambda: self._host.expect(_NAME_LIMIT, over=True))
        if self._session.arrived and not self._session.used:  # it has never begun to run here
            self._told("the vTPM that came waits on", lambda: self._host.void(_NAME_LIMIT))
        self._session = Session()
        if client is not None:
            client.close()

    def _sweep(self) -> None:
        """End what is late."""
        now, client, power = time.monotonic(), self._client, self._power
        if client is not None:
            client.note(now)
            if client.late(now):
                log.warning("QEMU is let go: it has sent half a message and nothing since")
                self._drop()
        if power is not None and power.since is not None and (power.lost or now - power.since > COMMAND_LIMIT):
            log.warning("a command has no answer for %.1f s; its outcome is unknown", now - power.since)
            power.give_up()
            self._reply(_FAILURE)

    def _control(self, client: Connection) -> None:
        if not client.receive():
            self._drop()
            return
        while (request := wire.take_request(client.requests)) is not None:
            client.control.sendall(self._answer(client, request))
            client.drop_fds()  # one that came with another command

    def _answer(self, client: Connection, request: Request) -> bytes:
        if request.command is Cmd.CMD_SET_DATAFD:
            return client.open_data()
        effect = self._session.control(request)
        if not self._session.on:
            self._power_off()
        match effect:
            case Begins():
                self._session.expected = True
                self._told("the manager is not told that this VM may come", lambda: self._host.expect(_NAME_LIMIT))
            case PowerOn() if self._may_come():
                return self._session.waits()
            case PowerOn():
                return self._session.powered(self._power_on())
            case Leave():
                return self._session.left(self._told("this VM cannot take its vTPM along", self._leave))
            case Redeem(ticket):
                self._ticket = ticket
                self._boot = self._told("the vTPM does not follow", lambda: self._host.redeem(ticket))
                return self._session.redeemed(self._boot is not None)
            case GoOn():
                return self._session.powered(self._go_on())
        assert isinstance(effect, Answer | Begins)
        return effect.data

    def _data(self, client: Connection) -> None:
        command = client.take_command()
        if command is None:
            return
        effect = self._session.execute(command)
        if isinstance(effect, PowerOn):  # no ticket came: a VM that boots
            self._session.powered(self._power_on())
            effect = self._session.execute(command)
        if isinstance(effect, Execute) and self._power is not None:
            self._power.since = time.monotonic()
            self._power.link.be_patient(effect.patience)
            self._answered(self._power.link.submit(effect.command, effect.locality))
        elif isinstance(effect, Answer):
            self._reply(effect.data)

    def _reply(self, response: bytes) -> None:
        if self._client is not None:
            self._guarded(self._client, lambda client: client.data.sendall(response) if client.data else None)

    # -- the vTPM -------------------------------------------------------------------------------------------

    def _power_on(self) -> bool:
        """Whether the manager has acknowledged a new boot."""
        began = time.monotonic()
        what = "this VM's boot is not acknowledged, its TPM stays off"
        if (number := self._told(what, lambda: self._host.power_on(INIT_LIMIT))) is None:
            return False
        log.info("boot %d, acknowledged after %.2f s", number, time.monotonic() - began)
        self._power = Power(number, self._connected, self._host)
        return True

    def _may_come(self) -> bool:
        """Whether this VM may be one that comes with a ticket: then its power-on is no boot yet."""
        return self._session.movable and bool(
            self._told("the manager does not say whether a VM comes", lambda: self._host.waits_for_ticket(INIT_LIMIT))
        )

    def _leave(self) -> bytes:
        began = time.monotonic()
        ticket = self._host.ticket(INIT_LIMIT)
        log.info("the VM leaves, or is saved: its ticket is here after %.3f s", time.monotonic() - began)
        return ticket

    def _go_on(self) -> bool:
        """Whether the manager has wired the vTPM that was redeemed."""

        def named(boot: int) -> Power:
            self._host.name_boot(boot, INIT_LIMIT)
            return Power(boot, self._connected, self._host, self._ticket)

        boot = self._boot
        self._power = None if boot is None else self._told("the vTPM that came is not wired", lambda: named(boot))
        return self._power is not None

    def _told(self, what: str, ask: Callable[[], T]) -> T | None:
        """What the manager answers; None, and why in the log, if it refuses."""
        try:
            return ask()
        except VtpmManagerError as error:
            log.error("%s: %s", what, error)
            return None

    def _power_off(self) -> None:
        """The VM lets go of its vTPM, which stays as it is; a command under way has no outcome that we could know."""
        power, self._power = self._power, None
        if power is not None:
            power.link.close()
            if power.since is not None:
                self._reply(_FAILURE)

    def _answered(self, answers: list[bytes]) -> None:
        for answer in answers:
            if self._power is not None:
                self._power.since = None
            self._reply(answer)


def _has_left(connection: socket.socket) -> bool:
    poller = select.poll()
    poller.register(connection, 0)  # POLLHUP comes unasked
    return bool(poller.poll(0))
