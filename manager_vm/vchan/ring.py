"""The shared-memory ring: layout, handshake, byte streams (CHANNEL.md section 5); the same for every carrier.

Every word that the peer can write is read once, checked, then used. Our own indices are kept in private copies: what
the peer does to their image in memory cannot lead us astray. Index words are loaded and stored as single
aligned 32-bit accesses (a cast memoryview; struct would go byte by byte) and rely on x86-64's store order.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from manager_vm.errors import RemoteProtocolError
from manager_vm.vchan.endpoint import State
from manager_vm.wire.channel import RING_MEMORY

MEMORY_SIZE = RING_MEMORY
RING_SIZE = 32 << 10  # bytes, a power of two
MAGIC = 0x7074766D
LAYOUT = 1
_MASK32 = 0xFFFFFFFF

# word indices (byte offset / 4); each on a cache line of its own where both sides poll it
_W_MAGIC, _W_LAYOUT, _W_EPOCH, _W_SERVER_LIVE = 0, 1, 2, 3
_W_CLIENT_NONCE = 16
_W_SERVER_ACK = 32
_W_C2S_PROD, _W_C2S_CONS, _W_S2C_PROD, _W_S2C_CONS = 48, 64, 80, 96
_C2S_DATA, _S2C_DATA = RING_SIZE, 2 * RING_SIZE


class _Producer:
    def __init__(self, memory: memoryview, data: int, prod: int, cons: int) -> None:
        self._words = memory.cast("I")
        self._data = memory[data : data + RING_SIZE]
        self._prod_word, self._cons_word = prod, cons
        self._prod = 0

    def space(self) -> int:
        used = (self._prod - self._words[self._cons_word]) & _MASK32
        if used > RING_SIZE:
            raise RemoteProtocolError("the peer's consumer index is impossible: its ring is corrupt; reconnect it")
        return RING_SIZE - used

    def write(self, data: bytes) -> int:
        count = min(len(data), self.space())
        start = self._prod & (RING_SIZE - 1)
        end = start + count
        if end <= RING_SIZE:
            self._data[start:end] = data[:count]
        else:
            first = RING_SIZE - start
            self._data[start:] = data[:first]
            self._data[: count - first] = data[first:count]
        self._prod = (self._prod + count) & _MASK32
        self._words[self._prod_word] = self._prod
        return count

    def release(self) -> None:
        self._words.release()
        self._data.release()


class _Consumer:
    def __init__(self, memory: memoryview, data: int, prod: int, cons: int) -> None:
        self._words = memory.cast("I")
        self._data = memory[data : data + RING_SIZE]
        self._prod_word, self._cons_word = prod, cons
        self._cons = 0

    def ready(self) -> int:
        used = (self._words[self._prod_word] - self._cons) & _MASK32
        if used > RING_SIZE:
            raise RemoteProtocolError("the peer's producer index is impossible: its ring is corrupt; reconnect it")
        return used

    def read(self, limit: int, ready: int) -> bytes:
        count = min(limit, ready)
        start = self._cons & (RING_SIZE - 1)
        end = start + count
        if end <= RING_SIZE:
            data = self._data[start:end].tobytes()
        else:
            data = self._data[start:].tobytes() + self._data[: end - RING_SIZE].tobytes()
        self._cons = (self._cons + count) & _MASK32
        self._words[self._cons_word] = self._cons
        return data

    def release(self) -> None:
        self._words.release()
        self._data.release()


class _Side:
    """What both sides share. ``kick`` notifies the peer; it is called after every change the peer waits for."""

    def __init__(self, memory: memoryview, kick: Callable[[], None], sends_c2s: bool) -> None:
        if len(memory) < MEMORY_SIZE:
            raise RemoteProtocolError(f"the shared memory has {len(memory)} bytes instead of {MEMORY_SIZE}")
        self._memory = memory[:MEMORY_SIZE]
        self._words = self._memory.cast("I")
        self._kick = kick
        self._sends_c2s = sends_c2s
        self._attach_streams()

    def _attach_streams(self) -> None:
        c2s = (self._memory, _C2S_DATA, _W_C2S_PROD, _W_C2S_CONS)
        s2c = (self._memory, _S2C_DATA, _W_S2C_PROD, _W_S2C_CONS)
        self._out = _Producer(*(c2s if self._sends_c2s else s2c))
        self._in = _Consumer(*(s2c if self._sends_c2s else c2s))

    def data_ready(self) -> int:
        """Bytes to read."""
        return self._in.ready()

    def buffer_space(self) -> int:
        """Bytes that fit."""
        return self._out.space()

    def read(self, limit: int) -> bytes:
        """Copy out at most ``limit`` bytes; wakes a peer that waits for space in a full ring."""
        ready = self._in.ready()
        if not ready:
            return b""
        data = self._in.read(limit, ready)
        if ready > RING_SIZE // 2:
            self._kick()
        return data

    def write(self, data: bytes) -> int:
        """Write what fits, then notify."""
        count = self._out.write(data)
        if count:
            self._kick()
        return count

    def release(self) -> None:
        """Let go of the memory, so that its owner can unmap it."""
        self._out.release()
        self._in.release()
        self._words.release()
        self._memory.release()


class RingServer(_Side):
    """The manager's side: owns the header, resets the streams for each client."""

    def __init__(self, memory: memoryview, kick: Callable[[], None]) -> None:
        super().__init__(memory, kick, sends_c2s=False)
        words = self._words
        known = words[_W_MAGIC] == MAGIC and words[_W_LAYOUT] == LAYOUT
        if not known:
            words[_W_EPOCH] = int.from_bytes(os.urandom(4), "little")
        self._client = words[_W_CLIENT_NONCE]
        self._new_epoch()  # whoever asked before has to ask again
        words[_W_LAYOUT], words[_W_SERVER_LIVE] = LAYOUT, 1
        words[_W_MAGIC] = MAGIC
        self.arrivals = 0
        self.state = State.WAITING
        kick()

    def update(self) -> State:
        """Notice a client that came or left."""
        nonce = self._words[_W_CLIENT_NONCE]
        if nonce != self._client:
            self._client = nonce
            self.state = self._accept(nonce) if nonce else State.WAITING
        return self.state

    def _accept(self, nonce: int) -> State:
        for word in (_W_C2S_PROD, _W_C2S_CONS, _W_S2C_PROD, _W_S2C_CONS):
            self._words[word] = 0
        self._out.release()
        self._in.release()
        self._attach_streams()
        self.arrivals += 1
        self._words[_W_SERVER_ACK] = nonce
        self._kick()
        return State.OPEN

    def drop_client(self) -> None:
        """The client broke the rules or its carrier saw it die: it has to come again."""
        self.state = State.WAITING
        self._new_epoch()
        self._kick()

    def _new_epoch(self) -> None:
        """Void every nonce there is; a client that waits for its acknowledgement notices it too."""
        self._words[_W_EPOCH] = (self._words[_W_EPOCH] + 1) & _MASK32 or 1
        self._words[_W_SERVER_ACK] = 0

    def leave(self) -> None:
        """Tell the client that nobody serves here any more."""
        self._words[_W_SERVER_LIVE] = 0
        self._words[_W_SERVER_ACK] = 0
        self._kick()


class RingClient(_Side):
    """The guest's side: asks with a nonce, is open once the server has acknowledged it."""

    def __init__(self, memory: memoryview, kick: Callable[[], None]) -> None:
        super().__init__(memory, kick, sends_c2s=True)
        self._nonce = 0
        self._epoch = 0
        self.state = State.WAITING
        self.update()

    def update(self) -> State:
        """Ask when a server is there, notice its answer, its restart and its departure."""
        words = self._words
        if self.state is State.CLOSED:
            return State.CLOSED
        if self._nonce == 0:
            if words[_W_MAGIC] == MAGIC and words[_W_LAYOUT] == LAYOUT and words[_W_SERVER_LIVE] == 1:
                self._ask()
        elif words[_W_EPOCH] != self._epoch or words[_W_SERVER_LIVE] != 1:
            self.state = State.CLOSED
        elif words[_W_SERVER_ACK] == self._nonce:
            self.state = State.OPEN
        elif self.state is State.OPEN:
            self.state = State.CLOSED
        return self.state

    def _ask(self) -> None:
        self._epoch = self._words[_W_EPOCH]
        while self._nonce in (0, self._words[_W_CLIENT_NONCE]):
            self._nonce = int.from_bytes(os.urandom(4), "little")
        self._words[_W_CLIENT_NONCE] = self._nonce
        self._kick()

    def leave(self) -> None:
        """Tell the server that we are gone."""
        if self._words[_W_CLIENT_NONCE] == self._nonce:
            self._words[_W_CLIENT_NONCE] = 0
            self._kick()
        self.state = State.CLOSED
