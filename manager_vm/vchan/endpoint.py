"""What every channel end point offers, after libvchan (Xen, tools/libs/vchan): the words are the same.

An end point belongs to one thread. It never trusts the peer: a broken index or length raises
RemoteProtocolError, leaves the end point CLOSED, and touches nothing else.
"""

from __future__ import annotations

import select
import time
from abc import ABC, abstractmethod
from enum import IntEnum
from types import TracebackType

from manager_vm.errors import UnreachableError


class State(IntEnum):
    """As libvchan_is_open: CLOSED (the peer left or broke the rules), OPEN, WAITING (for a peer)."""

    CLOSED = 0
    OPEN = 1
    WAITING = 2


class Endpoint(ABC):
    """One end of a channel; a byte stream each way. Implementations: local, ivshmem, virtio_serial.

    A *server* end point outlives its peers: when one leaves it is WAITING again and the next one
    changes ``epoch``. A *client* end point serves one connection: when the peer leaves it is CLOSED and
    its owner opens a new one (never blocking, at its own pace).
    """

    epoch: int = 0  # counts peers; when it changes, whatever was half read or half written is void
    lossy: bool = False  # True: bytes can be lost or truncated (virtio-serial): use Decoder(resync=True)

    @abstractmethod
    def fileno(self) -> int:
        """A descriptor that becomes readable when anything may have changed (data, space, peer)."""

    @abstractmethod
    def update(self) -> State:
        """Take note of what happened (events, arrivals, departures). Never blocks. May change ``epoch``."""

    @abstractmethod
    def data_ready(self) -> int:
        """Bytes that can be read now."""

    @abstractmethod
    def buffer_space(self) -> int:
        """Bytes that can be written now."""

    @abstractmethod
    def read(self, limit: int) -> bytes:
        """At most ``limit`` bytes, copied out before anybody looks at them; b"" if there are none."""

    @abstractmethod
    def write(self, data: bytes) -> int:
        """Write what fits and notify the peer; returns how many bytes that were."""

    @abstractmethod
    def close(self) -> None:
        """Free everything; idempotent. The peer sees the departure."""

    def drop_peer(self) -> None:
        """The peer broke the rules or does not read: it has to come again. Idempotent; a client end point is CLOSED."""
        self.close()

    def wait(self, timeout: float | None) -> State:
        """Block until something may have changed or ``timeout`` seconds passed; then update()."""
        poller = select.poll()
        poller.register(self.fileno(), select.POLLIN)
        poller.poll(None if timeout is None else timeout * 1000)
        return self.update()

    def send(self, data: bytes, timeout: float = 5.0) -> bool:
        """Write all of ``data``; UnreachableError if the peer leaves or does not read for ``timeout`` seconds.

        True: it had to wait for room, and may have taken the event for bytes that came meanwhile; look for them.
        """
        epoch, done = self.epoch, self.write(data)
        waited, deadline = False, time.monotonic() + timeout
        while done < len(data):
            waited, left = True, deadline - time.monotonic()
            if left <= 0 or self.wait(left) is not State.OPEN or self.epoch != epoch:
                raise UnreachableError("the other end of the channel left or stopped reading; reconnect")
            done += self.write(data[done:])
        return waited

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
