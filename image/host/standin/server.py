"""The stand-in's sockets: QEMUs that come and go, the TPM behind them, one poll loop. No rules (see ``session``)."""

from __future__ import annotations

import logging
import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from image.host.standin.chip import Chip
from image.host.standin.session import Answer, Arriving, Desk, Effect, Execute, Load, Reset, Session
from image.host.unix import listen
from manager_vm.errors import RemoteProtocolError, SwtpmRefusedError
from manager_vm.vchan.emulator import Connection
from manager_vm.wire import swtpm as wire
from manager_vm.wire.swtpm import Cmd, Request

log = logging.getLogger(__name__)

SOCKET = "control.sock"
READY, PID = b"READY", b"pid"  # to the owner: it serves; from the owner: which process is swtpm
_MOST = 4  # QEMUs at once; one more waits until another leaves
_PATIENCE = 5.0  # seconds for the rest of a message, or for a QEMU to take an answer


class Client(Connection):
    """A connected QEMU."""

    def __init__(self, control: socket.socket, session: Session) -> None:
        super().__init__(control, _PATIENCE)
        self.session = session


class Server:
    """Serves ``DIRECTORY/control.sock`` until ``stop``. ``owner``: a seqpacket socket; we end when it closes."""

    def __init__(self, directory: Path, arriving: Arriving, owner: socket.socket | None = None) -> None:
        self._path = directory / SOCKET
        self._owner = owner
        self._clients: list[Client] = []
        self._waiting: Client | None = None  # whose command the TPM executes
        self._stopped = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.chip = Chip(directory)
        self.desk = Desk(arriving, fresh=self.chip.new, bounds=self.chip.bounds)
        try:
            self._listener = listen(self._path, _MOST)
        except BaseException:
            self.chip.close()
            raise

    def run(self) -> None:
        """Serve; HostError if the TPM has gone, whose memory is lost then as by a power cut."""
        while not self._stopped:
            handlers = self._handlers()
            poller = select.poll()
            for fd, (events, _) in handlers.items():
                poller.register(fd, events)
            for fd, _ in poller.poll(self._patience()):
                handlers[fd][1]()
            self._sweep()

    def stop(self) -> None:
        """Have ``run`` return; may be called from a signal handler."""
        self._stopped = True
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End the TPM in order, let go of all QEMUs."""
        self._listener.close()
        self._path.unlink(missing_ok=True)
        for client in list(self._clients):
            self._drop(client)
        self.chip.close()
        os.close(self._wake)

    def _handlers(self) -> dict[int, tuple[int, Callable[[], None]]]:
        """Descriptor -> events and what to do. One whose command is executed is only watched for its end."""
        found: dict[int, tuple[int, Callable[[], None]]] = {
            self._wake: (select.POLLIN, lambda: None),
            self.chip.fileno(): (select.POLLIN, self._respond),
        }
        if self._owner is not None:
            found[self._owner.fileno()] = (select.POLLIN, self._obey)
        if len(self._clients) < _MOST:
            found[self._listener.fileno()] = (select.POLLIN, self._accept)
        for client in self._clients:
            events = 0 if client is self._waiting else select.POLLIN
            found[client.control.fileno()] = (events, lambda c=client: self._guarded(c, self._control))  # type: ignore[misc]
            if client.data is not None and events:
                found[client.data.fileno()] = (events, lambda c=client: self._guarded(c, self._data))  # type: ignore[misc]
        return found

    def _patience(self) -> float | None:
        """Milliseconds until something is late."""
        ends = [client.since + client.patience for client in self._clients if client.since is not None]
        if self.chip.busy_until is not None:
            ends.append(self.chip.busy_until)
        return max(min(ends) - time.monotonic(), 0.0) * 1000 + 1 if ends else None

    def _sweep(self) -> None:
        """End what is late."""
        now = time.monotonic()
        for client in list(self._clients):
            client.note(now)
            if client.late(now):
                log.warning("a QEMU has sent half a message and nothing since; it is let go")
                self._drop(client)
        if self.chip.busy_until is not None and now > self.chip.busy_until:
            raise self.chip.late()

    # -- events ---------------------------------------------------------------------------------------------

    def _obey(self) -> None:
        """The owner chooses what an arriving VM finds, asks, or has gone."""
        assert self._owner is not None
        message = b""
        with suppress(ConnectionResetError):
            message = self._owner.recv(64)
        if message in [each.encode() for each in Arriving]:
            self.desk.arriving = Arriving(message.decode())
            self._owner.send(b"ok")
        elif message == PID:
            self._owner.send(str(self.chip.pid).encode())
        else:
            self._stopped = True

    def _accept(self) -> None:
        control, _ = self._listener.accept()
        self._clients.append(Client(control, Session(self.desk)))

    def _guarded(self, client: Client, handle: Callable[[Client], None]) -> None:
        """What one QEMU does wrong ends its own connection only."""
        if client not in self._clients or (client is self._waiting and handle == self._data):
            return
        try:
            handle(client)
        except RemoteProtocolError as error:
            log.warning("a QEMU is let go: %s", error)
            self._drop(client)
        except OSError:
            self._drop(client)

    def _drop(self, client: Client) -> None:
        client.session.leave()
        client.close()
        self._clients.remove(client)
        if self._waiting is client:
            self._waiting = None

    def _control(self, client: Client) -> None:
        if not client.receive():
            self._drop(client)
            return
        while (request := wire.take_request(client.requests)) is not None:
            client.control.sendall(self._answer(client, request))
            client.drop_fds()  # one that came with another command

    def _answer(self, client: Client, request: Request) -> bytes:
        if request.command is Cmd.CMD_SET_DATAFD:
            return client.open_data()
        effect = client.session.control(request)
        if isinstance(effect, Reset | Load):
            return self._power(client.session, effect)
        if isinstance(effect, Answer):
            return effect.data
        assert not isinstance(effect, Execute)
        return self.chip.forward(effect.request)

    def _power(self, session: Session, effect: Reset | Load) -> bytes:
        try:
            if isinstance(effect, Load):
                self.chip.load(effect.blobs, effect.buffer_size)
            else:
                self.chip.reset(effect.buffer_size)
        except SwtpmRefusedError as error:
            log.warning("the TPM has no power for this VM: %s", error)
            return session.powered(False)
        return session.powered(True)

    def _data(self, client: Client) -> None:
        command = client.take_command()
        if command is None:
            return
        effect: Effect = client.session.execute(command)
        if isinstance(effect, Execute):
            self.chip.start(effect.command, effect.locality)
            self._waiting = client
        elif isinstance(effect, Answer):
            self._reply(client, effect.data)

    def _respond(self) -> None:
        """The TPM has answered, or has ended."""
        response = self.chip.finish()
        if response is not None:
            client, self._waiting = self._waiting, None
            if client is not None:
                self._guarded(client, lambda each: self._reply(each, response))

    def _reply(self, client: Client, response: bytes) -> None:
        if client.data is not None:
            client.data.sendall(response)


def serve(directory: Path, arriving: Arriving, owner: socket.socket | None, ready: Callable[[Server], None]) -> None:
    """Everything, until the owner leaves or ``stop``. ``ready`` gets the server once it listens."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    server = Server(directory, arriving, owner)
    try:
        ready(server)
        with suppress(BrokenPipeError):
            if owner is not None:
                owner.send(READY)
        server.run()
    finally:
        server.close()
