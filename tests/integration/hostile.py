"""Garbage of every kind that a guest can put on its channel."""

from __future__ import annotations

import random

from manager_vm.errors import UnreachableError
from manager_vm.wire import channel, framing, tpm
from manager_vm.wire.channel import Bye, Command, Hello, Message, Ping
from manager_vm.wire.framing import Frame
from tests.integration.raw import Session

_PER_CONNECTION = 100


def _message(dice: random.Random) -> Message:
    choices: list[Message] = [
        Hello(dice.randbytes(16), dice.randrange(1 << 63), dice.randrange(256), dice.randrange(1 << 32)),
        Command(dice.randrange(1 << 63), dice.randrange(256), dice.randbytes(dice.randrange(200))),
        Command(dice.randrange(20), 0, tpm.get_random(dice.randrange(1 << 16))),
        Ping(dice.randrange(1 << 64)),
        Bye(),
    ]
    return dice.choice(choices)


def _truncated(dice: random.Random) -> bytes:
    data = framing.encode(channel.to_frame(_message(dice)))
    return data[: dice.randrange(len(data))]


def _flipped(dice: random.Random) -> bytes:
    data = bytearray(framing.encode(channel.to_frame(_message(dice))))
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return bytes(data)


def _well_formed_nonsense(dice: random.Random) -> bytes:
    body, name = dice.randbytes(dice.randrange(300)), "x" * dice.choice((0, 0, 0, 9))
    return framing.encode(Frame(dice.randrange(256), dice.randrange(256), dice.getrandbits(64), body, name))


def _oversized(dice: random.Random) -> bytes:
    return framing.HEADER.pack(framing.MAGIC, 3, 0, dice.randrange(4097, 1 << 32), 1, 0, 0, 0)


def _allowed(dice: random.Random) -> bytes:
    return framing.encode(channel.to_frame(_message(dice)))


def _noise(dice: random.Random) -> bytes:
    return dice.randbytes(dice.randrange(1, 300))


_KINDS = (_truncated, _flipped, _well_formed_nonsense, _oversized, _allowed, _noise)


def send_garbage(where: str, frames: int, dice: random.Random) -> int:
    """Send ``frames`` random, truncated and otherwise broken frames on many connections; how many those were.

    All that comes back is read and thrown away. Being dropped is the expected end of a connection.
    """
    sent = connections = 0
    while sent < frames:
        connections += 1
        with Session(where) as session:
            for _ in range(_PER_CONNECTION):
                try:
                    session.send_bytes(dice.choice(_KINDS)(dice))
                except UnreachableError:
                    break
                session.drain()
                sent += 1
    return connections
