"""Carrier (b): a ring in the memory of an ivshmem-doorbell device between two VMs (CHANNEL.md section 6).

Each pair of VMs has its own memory and server on the host, so a guest sees its own channel only. BAR0: own id at 8,
doorbell at 12; BAR2: the memory; MSI-X vector 0: the ring, vector 1: the other VM came or left.
"""

from __future__ import annotations

import errno
import os
import select
import struct
from contextlib import suppress

from manager_vm.errors import ConfigError, RemoteProtocolError, UnreachableError
from manager_vm.vchan import vfio
from manager_vm.vchan.endpoint import Endpoint, State
from manager_vm.vchan.ring import MEMORY_SIZE, RingClient, RingServer

VENDOR, DEVICE = 0x1AF4, 0x1110
_ID, _DOORBELL = 8, 12
_VECTORS = 2
_GONE = 0xFFFFFFFF  # what reads as all ones is not there any more
_PEERS = (0, 1)


class _Device:
    """The device with its memory, doorbell and events."""

    def __init__(self, address: str) -> None:
        self._vfio = vfio.VfioDevice(address or _only_device())
        self.events: list[int] = []
        try:
            for _ in range(_VECTORS + 1):
                self.events.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            self._vfio.route_interrupts(self.events[:_VECTORS])
            self._vfio.route_unplug(self.events[_VECTORS])
            self._map = self._vfio.map(2, MEMORY_SIZE)
            self._fd, self._registers = self._vfio.registers(0)
            own = int.from_bytes(os.pread(self._fd, 4, self._registers + _ID), "little")
            if own == _GONE:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
            if own not in _PEERS:
                raise ConfigError(f"the ivshmem device has the id {own}; a channel's server gives 0 and 1")
        except OSError as error:
            self._close_fds()
            raise UnreachableError(f"the ivshmem device does not work: {error.strerror}; is it unplugged?") from None
        except ConfigError:
            self._close_fds()
            raise
        self.view = memoryview(self._map)
        self._ring_peer = struct.pack("<I", (1 - own) << 16)

    def kick(self) -> None:
        """Ring the peer's vector 0."""
        with suppress(OSError):  # the device is being unplugged: update() will say so
            os.pwrite(self._fd, self._ring_peer, self._registers + _DOORBELL)

    def unplugged(self) -> bool:
        """Whether the kernel wants the device back; drains all events."""
        wanted = False
        for event in self.events:
            with suppress(BlockingIOError):
                os.eventfd_read(event)
                wanted = wanted or event == self.events[_VECTORS]
        return wanted

    def free(self) -> None:
        self.view.release()
        self._map.close()
        self._close_fds()

    def _close_fds(self) -> None:
        self._vfio.close()
        for event in self.events:
            os.close(event)


class _IvshmemEndpoint(Endpoint):
    """Both ends; the subclass brings its side of the ring."""

    def __init__(self, address: str) -> None:
        self._device: _Device | None = _Device(address)
        self._epoll = select.epoll()
        for event in self._device.events:
            self._epoll.register(event, select.EPOLLIN)
        self._ring = self._make_ring(self._device)

    def _make_ring(self, device: _Device) -> RingServer | RingClient:
        raise NotImplementedError

    def fileno(self) -> int:
        return self._epoll.fileno()

    def update(self) -> State:
        if self._device is None:
            return State.CLOSED
        if self._epoll.poll(0) and self._device.unplugged():
            self.close()
            return State.CLOSED
        return self._ring.update()

    def data_ready(self) -> int:
        return self._ring.data_ready() if self._is_open() else 0

    def buffer_space(self) -> int:
        return self._ring.buffer_space() if self._is_open() else 0

    def read(self, limit: int) -> bytes:
        return self._ring.read(limit) if self._is_open() else b""

    def write(self, data: bytes) -> int:
        return self._ring.write(data) if self._is_open() else 0

    def close(self) -> None:
        if self._device is None:
            return
        self._ring.leave()
        self._ring.release()
        self._epoll.close()
        self._device.free()
        self._device = None

    def _is_open(self) -> bool:
        return self._device is not None and self._ring.state is State.OPEN


class IvshmemServer(_IvshmemEndpoint):
    """The manager's end."""

    _ring: RingServer

    def _make_ring(self, device: _Device) -> RingServer:
        return RingServer(device.view, device.kick)

    def update(self) -> State:
        if self._device is None:
            return State.CLOSED
        arrivals = self._ring.arrivals
        state = super().update()
        if self._device is not None and self._ring.arrivals != arrivals:
            self.epoch += 1
        return state

    def read(self, limit: int) -> bytes:
        try:
            return super().read(limit)
        except RemoteProtocolError:
            self._ring.drop_client()
            raise

    def write(self, data: bytes) -> int:
        try:
            return super().write(data)
        except RemoteProtocolError:
            self._ring.drop_client()
            raise

    def drop_peer(self) -> None:
        if self._device is not None:
            self._ring.drop_client()


class IvshmemClient(_IvshmemEndpoint):
    """The front end's end."""

    def _make_ring(self, device: _Device) -> RingClient:
        return RingClient(device.view, device.kick)


def _only_device() -> str:
    found = vfio.find(VENDOR, DEVICE)
    if not found:
        raise UnreachableError("this machine has no ivshmem device; is the channel plugged in?")
    if len(found) > 1:
        raise ConfigError(f"there are several ivshmem devices; name one: {', '.join(f'ivshmem:{a}' for a in found)}")
    return found[0]
