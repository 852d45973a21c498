"""The guest's side: ``pipe`` and ``socket`` serve several clients on one vTPM and clean up after each of them."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from manager_vm.wire import tpm
from manager_vm.wire.tpm import CC, RC
from tests.integration import raw
from tests.integration.harness import ROOT, Guest, Manager, environment, processes, until
from tests.integration.raw import rc

TRANSIENT, LOADED_SESSION, SAVED_SESSION = 0x80000000, 0x02000000, 0x03000000


class Pipe:
    """A client of ``pipe`` with raw commands."""

    def __init__(self, manager: Manager) -> None:
        argv = [sys.executable, "-m", "guest_frontend", "pipe", manager.channel("a")]
        env = environment(manager.directory)
        self.process = subprocess.Popen(argv, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def execute(self, command: bytes) -> bytes:
        """A TPM is one method."""
        self.send(command)
        assert self.process.stdout is not None
        head = self.process.stdout.read(tpm.HEADER_SIZE)
        return head + self.process.stdout.read(int.from_bytes(head[2:6], "big") - len(head))

    def send(self, data: bytes) -> None:
        """Bytes, not necessarily a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def leave(self, *, killed: bool = False) -> None:
        """End of file on stdin, or SIGKILL."""
        if killed:
            self.process.kill()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(10)

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.leave(killed=True)


@pytest.fixture
def one(manager: Manager) -> Iterator[Manager]:
    """vTPM "a" runs. At the end its front end has ended: a command that it has written waits for its manager."""
    manager.add("a")
    yield manager
    until(lambda: not processes(f"pipe {manager.channel('a')}"), what="the front end has cleaned up behind its clients")


def handles(manager: Manager, first: int) -> list[int]:
    """What the vTPM itself holds, seen without any resource manager; all front ends have left."""
    until(lambda: not processes(manager.channel("a")), what="front ends have ended")
    link = manager.link("a")
    try:
        answer = link.execute(tpm.get_capability(tpm.TPM_CAP_HANDLES, first, 64))
    finally:
        link.close()
    return [int.from_bytes(answer[19 + i : 23 + i], "big") for i in range(0, len(answer) - 19, 4)]


def test_a_batch_of_any_length_is_answered_through_a_pipe(one: Manager) -> None:
    count = 6_000
    batch, answers = one.directory / "batch", one.directory / "answers"
    batch.write_bytes(tpm.get_random(32) * count)
    argv = [sys.executable, "-m", "guest_frontend", "pipe", one.channel("a")]
    with open(batch, "rb") as stdin, open(answers, "wb") as stdout:
        subprocess.run(
            argv, cwd=ROOT, env=environment(one.directory), stdin=stdin, stdout=stdout, check=True, timeout=120
        )
    assert answers.stat().st_size == count * (tpm.HEADER_SIZE + 2 + 32)


def test_a_client_that_is_gone_before_it_is_greeted_disturbs_nobody(one: Manager) -> None:
    name = hashlib.sha256(one.channel("a").encode()).hexdigest()[:32]
    with Pipe(one) as pipe:
        key = raw.handle_of(pipe.execute(raw.create_primary()))
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as knocking:
                knocking.connect(str(one.directory / "vtpm-frontend" / f"{name}.sock"))
        assert rc(pipe.execute(tpm.read_public(key))) == 0
        pipe.leave()
    assert handles(one, TRANSIENT) == []


@pytest.mark.parametrize("killed", [False, True])
def test_a_departed_client_leaves_nothing_and_another_keeps_what_it_has(one: Manager, killed: bool) -> None:
    with Pipe(one) as first, Pipe(one) as second:
        mine, theirs = (raw.handle_of(pipe.execute(raw.create_primary())) for pipe in (first, second))
        session = raw.handle_of(second.execute(raw.start_policy_session()))
        raw.handle_of(first.execute(raw.start_policy_session()))
        before = second.execute(tpm.read_public(theirs))
        assert rc(before) == rc(first.execute(tpm.read_public(mine))) == 0
        first.leave(killed=killed)
        assert second.execute(tpm.read_public(theirs)) == before
        assert rc(second.execute(raw.policy_command_code(session))) == 0
        second.leave(killed=killed)
    assert handles(one, TRANSIENT) == handles(one, LOADED_SESSION) == handles(one, SAVED_SESSION) == []


def test_without_cleaning_up_the_handles_would_be_seen(one: Manager) -> None:
    """So that the empty lists above mean something."""
    link = one.link("a")
    made = [raw.handle_of(link.execute(command)) for command in (raw.create_primary(), raw.start_policy_session())]
    link.close()
    assert [handles(one, TRANSIENT), handles(one, LOADED_SESSION)] == [[made[0]], [made[1]]]


def test_a_session_that_the_client_saved_itself_outlives_it(one: Manager) -> None:
    with Pipe(one) as client:
        session = raw.handle_of(client.execute(raw.start_policy_session()))
        saved = client.execute(tpm.command(CC.TPM2_ContextSave, handles=(session,)))
        assert rc(saved) == 0
        client.leave()
    with Pipe(one) as client:
        assert rc(client.execute(raw.policy_get_digest(session))) != 0
        loaded = client.execute(tpm.command(CC.TPM2_ContextLoad, saved[tpm.HEADER_SIZE :]))
        assert raw.handle_of(loaded) == session
        assert rc(client.execute(raw.policy_get_digest(session))) == 0


def test_a_client_cannot_use_the_object_of_another(one: Manager) -> None:
    with Pipe(one) as first, Pipe(one) as second:
        handle = raw.handle_of(first.execute(raw.create_primary()))
        assert rc(second.execute(tpm.read_public(handle))) == RC.TPM_RC_REFERENCE_H0
        assert rc(second.execute(tpm.flush_context(handle))) != 0
        assert rc(first.execute(tpm.read_public(handle))) == 0


def test_more_clients_than_the_vtpm_has_slots_keep_their_objects(one: Manager) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(Pipe(one)) for _ in range(6)]
        owned = {pipe: [raw.handle_of(pipe.execute(raw.create_primary())) for _ in range(2)] for pipe in clients}
        for _ in range(3):
            answers = [rc(pipe.execute(tpm.read_public(handle))) for pipe in clients for handle in owned[pipe]]
            assert answers == [0] * 12
        for pipe in clients:
            pipe.leave()
    assert handles(one, TRANSIENT) == []


def test_a_client_that_leaves_with_half_a_command_disturbs_nobody(one: Manager) -> None:
    with Pipe(one) as first, Pipe(one) as second:
        second.execute(tpm.get_random(8))
        first.send(tpm.get_random(8)[:7])
        first.leave()
        assert rc(second.execute(tpm.get_random(8))) == 0


@pytest.mark.parametrize("size", [0, 9, 13, 4096, 0xFFFFFFFF])
def test_a_command_whose_size_field_lies_is_answered_with_command_size(one: Manager, size: int) -> None:
    with Pipe(one) as client:
        head = tpm.get_random(8)
        if size in (13, 4096):  # a size that can be: the rest is waited for, then the filter of the TPM decides
            client.send(head[:2] + size.to_bytes(4, "big") + head[6:])
            assert rc(client.execute(bytes(size - len(head)))) != 0
        else:
            assert rc(client.execute(head[:2] + size.to_bytes(4, "big") + head[6:])) == RC.TPM_RC_COMMAND_SIZE
        assert rc(client.execute(tpm.get_random(8))) == 0


def test_two_tools_in_a_shell_pipe_do_not_lock_each_other_out(one: Manager) -> None:
    guest = one.guest("a")
    for _ in range(3):
        done = guest.attempt("sh", "-c", "tpm2_getrandom 32 | tee r | tpm2_hash -C n -g sha256 --hex", timeout=30)
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode().strip() == hashlib.sha256((guest.files / "r").read_bytes()).hexdigest()


def test_many_tools_at_once_on_one_vtpm_all_succeed(one: Manager) -> None:
    guest = one.guest("a")

    def primary(number: int) -> bytes:
        guest.run("tpm2_createprimary", "-C", "o", "-G", "ecc", "-c", f"{number}.ctx")
        return guest.run("tpm2_readpublic", "-c", f"{number}.ctx")

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(primary, range(12)))) == 1
    assert handles(one, TRANSIENT) == []


def test_the_runtime_directory_is_private_and_usable_under_a_tools_umask(one: Manager) -> None:
    """tpm2-tools run with umask 0117, which would take the owner's right to enter a new directory."""
    one.guest("a").run("sh", "-c", "umask 0117 && tpm2_getrandom 8")
    found = one.directory / "vtpm-frontend"
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    until(lambda: not processes(one.channel("a")), what="the broker has ended")
    assert [path.name for path in found.iterdir() if path.suffix != ".lock"] == []


@contextmanager
def served_by_socket(manager: Manager) -> Iterator[int]:
    """``socket`` runs; its command port."""
    argv = [sys.executable, "-m", "guest_frontend", "socket", manager.channel("a"), "--port", "0"]
    process = subprocess.Popen(argv, cwd=ROOT, env=environment(manager.directory), stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        said = process.stdout.readline().decode()
        (port,) = re.findall(r"commands at 127\.0\.0\.1:(\d+)", said)
        yield int(port)
    finally:
        process.send_signal(signal.SIGTERM)
        process.stdout.close()
        process.wait(10)


def test_tools_work_through_the_socket_pair(one: Manager) -> None:
    with served_by_socket(one) as port:
        files = one.directory / "files"
        files.mkdir()
        guest = Guest(f"swtpm:host=127.0.0.1,port={port}", files, one.directory)
        (files / "message").write_bytes(b"m")
        guest.run("tpm2_createprimary", "-C", "o", "-G", "ecc", "-c", "p.ctx")
        guest.run("tpm2_create", "-C", "p.ctx", "-G", "ecc", "-u", "k.pub", "-r", "k.priv", "-c", "k.ctx")
        guest.run("tpm2_sign", "-c", "k.ctx", "-g", "sha256", "-o", "s", "message")
        guest.run("tpm2_verifysignature", "-c", "k.ctx", "-g", "sha256", "-m", "message", "-s", "s")
        with ThreadPoolExecutor(4) as pool:
            assert len(set(pool.map(lambda _: guest.run("tpm2_getrandom", "16"), range(8)))) == 8
    assert handles(one, TRANSIENT) == handles(one, LOADED_SESSION) == []


def test_the_socket_cleans_up_when_a_client_process_ends_and_not_before(one: Manager) -> None:
    """As the TCTI does it: a new connection for every command; here one client is a child, the other this process."""
    with served_by_socket(one) as port:
        mine = raw.handle_of(by_socket(port, raw.create_primary()))
        made = [raw.handle_of(by_socket_of_a_child(port, raw.create_primary())) for _ in range(5)]
        assert rc(by_socket(port, tpm.read_public(mine))) == 0
        assert len(made) == 5  # more than the vTPM has slots
        broken = socket.create_connection(("127.0.0.1", port), timeout=10)
        broken.sendall(tpm.get_random(8)[:5])
        broken.close()
        assert rc(by_socket(port, tpm.read_public(mine))) == 0
        assert rc(by_socket_of_a_child(port, tpm.read_public(mine))) == RC.TPM_RC_REFERENCE_H0
        assert rc(by_socket(port, tpm.flush_context(mine))) == 0
    assert handles(one, TRANSIENT) == []


def by_socket(port: int, command: bytes) -> bytes:
    """One command over a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(command)
        return connection.recv(4096)


def by_socket_of_a_child(port: int, command: bytes) -> bytes:
    """The same by a process that ends after it."""
    script = f"""import socket, sys
s = socket.create_connection(("127.0.0.1", {port})); s.sendall(bytes.fromhex("{command.hex()}"))
sys.stdout.buffer.write(s.recv(4096))"""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout


def test_a_client_that_resets_its_connection_ends_nobody_elses(one: Manager) -> None:
    with served_by_socket(one) as port:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as rude:
                rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                rude.sendall(tpm.get_random(8))
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(tpm.get_random(8))
            assert rc(client.recv(4096)) == 0


def test_the_control_port_gives_no_power_over_the_vtpm(one: Manager) -> None:
    extended = one.guest("a").extend(7)
    until(lambda: not processes(one.channel("a")), what="the broker has ended")
    with served_by_socket(one) as port, socket.create_connection(("127.0.0.1", port + 1), timeout=10) as control:
        for code, argument in (
            (2, b"\0\0\0\0"),
            (3, b""),
            (14, b""),
            (5, b"\4\0\0\0"),
        ):  # INIT, SHUTDOWN, STOP, locality
            control.sendall(code.to_bytes(4, "big") + argument)
            assert control.recv(64) == (10).to_bytes(4, "big")
    assert one.guest("a").pcr(7) == extended
    assert os.path.exists(f"/proc/{one.swtpm_pid('a')}")
