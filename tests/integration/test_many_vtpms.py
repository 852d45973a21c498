"""Many vTPMs at once, each used by real tools; three of them come to harm, and nothing stays behind."""

from __future__ import annotations

import os
import random
import re
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from manager_vm.wire import channel, framing
from manager_vm.wire.channel import Command, Hello, Response
from tests.integration import raw
from tests.integration.bystanders import Bystanders
from tests.integration.harness import Guest, Manager, until
from tests.integration.hostile import send_garbage
from tests.integration.raw import Scribbler, Session

CORE, FULL = (12, 2_000), (50, 10_000)
INDEX = "0x1500001"


def use(guest: Guest) -> bytes:
    """One of everything a guest commonly does; returns what it keeps in its NV index."""
    secret = guest.run("tpm2_getrandom", "32")
    (guest.files / "message").write_bytes(secret)
    guest.run("tpm2_createprimary", "-C", "o", "-G", "ecc", "-c", "p.ctx")
    guest.run("tpm2_create", "-C", "p.ctx", "-G", "ecc", "-u", "k.pub", "-r", "k.priv")
    guest.run("tpm2_load", "-C", "p.ctx", "-u", "k.pub", "-r", "k.priv", "-c", "k.ctx")
    guest.run("tpm2_sign", "-c", "k.ctx", "-g", "sha256", "-o", "signature", "message")
    guest.run("tpm2_verifysignature", "-c", "k.ctx", "-g", "sha256", "-m", "message", "-s", "signature")
    (guest.files / "message").write_bytes(b"another message")
    guest.fails("tpm2_verifysignature", "-c", "k.ctx", "-g", "sha256", "-m", "message", "-s", "signature")
    guest.define(INDEX)
    guest.write(INDEX, secret)
    return secret


def kill_in_mid_command(manager: Manager, name: str) -> None:
    """SIGKILL to a swtpm that has a command in hand."""
    pid = manager.swtpm_pid(name)
    with Session(manager.channel(name)) as session:
        seq = session.hello().next_seq
        os.kill(pid, signal.SIGSTOP)
        session.send(Command(seq, 0, raw.create_primary()))
        assert session.silent(0.3)
        os.kill(pid, signal.SIGKILL)
        answer = session.receive()
        assert isinstance(answer, Response) and raw.rc(answer.response) == 0x101
    until(lambda: "swtpm process died" in manager.show(name)["reason"], what="the death is recorded")
    assert manager.show(name)["state"] == "failed"
    assert re.search(f"ERROR .* vTPM {name}: swtpm (died|is gone)", manager.log())


def garble_indices(manager: Manager, name: str) -> None:
    """Impossible indices in the shared memory, in both directions."""
    for word in (48, 96):  # c2s producer, s2c consumer (ring.py)
        scribbler = Scribbler(manager.channel(name))
        scribbler.word(16, 0x1234)  # a client's nonce: opens the ring
        until(scribbler.open, what="the ring is open")
        if word == 96:
            send_hello_with_broken_consumer(scribbler)
        else:
            scribbler.word(word, 0x7FFFFFFF)
        assert scribbler.closed_by_peer()
        scribbler.close()
    for index in ("producer", "consumer"):
        complaint = f"vTPM {name}: channel {manager.channel(name)}: the peer's {index} index is impossible"
        until(partial(_said, manager, complaint), what=complaint)


def _said(manager: Manager, text: str) -> bool:
    return text in manager.log()


def send_hello_with_broken_consumer(scribbler: Scribbler) -> None:
    """A valid HELLO, whose answer the manager would have to write past a reader that cannot be where it says."""
    frame = framing.encode(channel.to_frame(Hello(bytes(16))))
    scribbler.memory[32768 : 32768 + len(frame)] = frame
    scribbler.memory[4 * 96 : 4 * 96 + 4] = (0x7FFFFFFF).to_bytes(4, "little")
    scribbler.word(48, len(frame))


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("count", "frames"), [CORE, pytest.param(*FULL, marks=pytest.mark.full)])
def test_many_vtpms_serve_their_guests_while_some_come_to_harm(manager: Manager, count: int, frames: int) -> None:
    names = [f"v{number:02}" for number in range(count)]
    manager.add(*names)
    secrets = with_all(manager, names)
    killed, garbled, flooded, *others = names
    with Bystanders(manager, others) as guests:
        kill_in_mid_command(manager, killed)
        guests.progress()
        garble_indices(manager, garbled)
        guests.progress()
        send_garbage(manager.channel(flooded), frames, random.Random(1))
        guests.progress()
    states = {row["name"]: row["state"] for row in manager.ctl("list")}
    assert states == dict.fromkeys(names, "running") | {killed: "failed"}
    assert manager.ctl("status")["vtpms"] == {"running": count - 1, "failed": 1}
    assert "0x101" in manager.guest(killed).fails("tpm2_getrandom", "8")
    manager.ctl("boot", killed, "2")
    assert {name: manager.guest(name).read(INDEX) for name in names} == secrets
    assert len(set(secrets.values())) == count


def with_all(manager: Manager, names: Sequence[str]) -> dict[str, bytes]:
    """``use`` by every guest, four at a time."""
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(names, pool.map(lambda name: use(manager.guest(name)), names), strict=True))
