"""``socket``: a swtpm-style pair of TCP ports on 127.0.0.1, for the TCTI ``swtpm:`` (swtpm_ioctls(3)).

The TCTI opens a connection for each command, so a client is the *process* behind its connections; what it had is
flushed when it ends. A process that cannot be found is one client per connection. Control commands never reach the
vTPM: CMD_GET_CAPABILITY, locality 0 and CMD_CANCEL_TPM_CMD (without effect) are answered, all others get
TPM_BAD_ORDINAL; power is the host's affair.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from dataclasses import dataclass

from guest_frontend import peer
from guest_frontend.client import MOST, Client
from guest_frontend.link import TOOL_PATIENCE, Link
from guest_frontend.rm import ResourceManager, Space
from manager_vm.errors import ConfigError
from manager_vm.wire.swtpm import Cmd

_HOST = "127.0.0.1"
_BAD_ORDINAL = 0x0A  # TPM_BAD_ORDINAL, swtpm's answer to a control command that it does not serve
_OPEN_TIMEOUT = 5.0
# least bytes of argument; a locality comes as one byte (tpm2-tss) or padded to four (swtpm_ioctl)
_ARGUMENTS = {Cmd.CMD_SET_LOCALITY: 1, Cmd.CMD_INIT: 4, Cmd.CMD_SET_BUFFERSIZE: 4}


def run(channel: str, port: int) -> None:
    """Serve until the process is ended."""
    link = Link(channel, TOOL_PATIENCE)
    data, control = _listen_pair(port)
    try:
        link.open(_OPEN_TIMEOUT)
        manager = ResourceManager(link)
        manager.start()
        print(f"commands at {_HOST}:{data.getsockname()[1]}, control at {_HOST}:{control.getsockname()[1]}", flush=True)
        _Server(data, control, link, manager).loop()
    finally:
        link.close()
        data.close()
        control.close()


@dataclass(slots=True)
class _Connection:
    """A data connection; its space is known from its first command on. ``shared``: it is its process's."""

    client: Client
    space: Space | None = None
    shared: bool = False


class _Server:
    """The loop over both listeners, all connections, and the link."""

    def __init__(self, data: socket.socket, control: socket.socket, link: Link, manager: ResourceManager) -> None:
        self._listeners = {data.fileno(): data, control.fileno(): control}
        self._data_fd = data.fileno()
        self._link = link
        self._manager = manager
        self._data: dict[int, _Connection] = {}
        self._processes: dict[int, tuple[int, Space]] = {}  # pid -> its descriptor (pidfd_open(2)), what it has
        self._control: dict[int, tuple[socket.socket, bytearray]] = {}

    def loop(self) -> None:
        """Serve for ever."""
        while True:
            for fd in self._poll():
                self._serve(fd)
            for fd, connection in list(self._data.items()):  # one command each: clients take turns
                client = connection.client
                if client.has_command:
                    client.answer(self._manager.execute(self._space(connection), client.command()))
                if client.done:
                    self._leave(self._data.pop(fd))
            self._link.step()

    def _poll(self) -> list[int]:
        """Descriptors for which something can be done, once anything happens."""
        poller = select.poll()
        listeners = self._listeners if len(self._data) + len(self._control) < MOST else {}
        for fd in (*listeners, *self._control, *(fd for fd, _ in self._processes.values()), self._link.fileno()):
            if fd >= 0:
                poller.register(fd, select.POLLIN)
        for fd, connection in self._data.items():
            poller.register(fd, connection.client.events)
        waiting = any(connection.client.has_command for connection in self._data.values())
        return [fd for fd, _ in poller.poll(0 if waiting else self._link.timeout() * 1000 + 1)]

    def _serve(self, fd: int) -> None:
        if fd in self._listeners:
            self._accept(fd)
        elif fd in self._data:
            self._data[fd].client.transfer()
        elif fd in self._control:
            if not _control_commands(*self._control[fd]):
                self._control.pop(fd)[0].close()
        else:
            self._ended(fd)

    def _leave(self, connection: _Connection) -> None:
        if connection.space is not None and not connection.shared:
            self._manager.leave(connection.space)
        connection.client.close()

    def _ended(self, fd: int) -> None:
        """A client process has ended, if ``fd`` is one's."""
        for pid in [pid for pid, (end, _) in self._processes.items() if end == fd]:
            self._manager.leave(self._processes.pop(pid)[1])
            os.close(fd)

    def _space(self, connection: _Connection) -> Space:
        if connection.space is None:
            pid = peer.owner(connection.client.connection, self._processes)
            if pid is not None and pid not in self._processes:
                try:
                    self._processes[pid] = os.pidfd_open(pid), Space()
                except OSError:
                    pid = None
            connection.shared = pid is not None
            connection.space = Space() if pid is None else self._processes[pid][1]
        return connection.space

    def _accept(self, fd: int) -> None:
        connection, _ = self._listeners[fd].accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if fd == self._data_fd:
            self._data[connection.fileno()] = _Connection(Client(connection))
        else:
            connection.setblocking(False)
            self._control[connection.fileno()] = (connection, bytearray())


def _control_commands(connection: socket.socket, buffer: bytearray) -> bool:
    """As swtpm does: one command at a time, what came with it belongs to it. A few bytes always find room."""
    try:
        piece = connection.recv(4096)
        buffer += piece
        code = int.from_bytes(buffer[:4], "big")
        size = 4 + (_ARGUMENTS.get(Cmd(code), 0) if code in set(Cmd) else 0)
        if len(buffer) >= size:
            connection.sendall(_control_answer(code, bytes(buffer[4:])))
            buffer.clear()
    except OSError:
        return False
    return bool(piece)


def _control_answer(code: int, argument: bytes) -> bytes:
    if code == Cmd.CMD_GET_CAPABILITY:
        return struct.pack(">Q", 1 << 3 | 1 << 5)  # PTM_CAP_SET_LOCALITY, PTM_CAP_CANCEL_TPM_CMD
    if code == Cmd.CMD_CANCEL_TPM_CMD or (code == Cmd.CMD_SET_LOCALITY and argument[:1] == b"\0"):
        return struct.pack(">I", 0)
    return struct.pack(">I", _BAD_ORDINAL)


def _listen_pair(port: int) -> tuple[socket.socket, socket.socket]:
    for _ in range(20):
        try:
            data = socket.create_server((_HOST, port))
        except OSError as error:
            raise ConfigError(f"port {port} cannot be had: {error.strerror}; choose another --port") from None
        try:
            return data, socket.create_server((_HOST, data.getsockname()[1] + 1))
        except (OSError, OverflowError):
            data.close()
        if port:
            break
    raise ConfigError(f"the ports {port or 'any'} and the next one are not both free; choose another --port")
