"""``qemu``: what a QEMU gets from the shim is what it would get from a swtpm, but for what is listed here; and what its
VM's resets and mistakes, and a manager's absence, do to the vTPM and to the shim."""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guest_frontend import qemu_server
from guest_frontend.host_link import HostLink
from guest_frontend.link import Link
from guest_frontend.qemu_server import Server
from manager_vm.vchan.lanes import Lanes
from manager_vm.vchan.local import LocalClient
from manager_vm.wire import swtpm as wire
from manager_vm.wire import tpm
from manager_vm.wire.swtpm import Blob, Cmd
from manager_vm.wire.tpm import RC
from tests.integration import raw
from tests.integration.fake_qemu import FakeQemu, Gone, Refused
from tests.integration.harness import ROOT, Manager, environment, until
from tests.integration.shim import Shim, bare_swtpm, connect, shimmed

ZERO = bytes(32)
TPM_RC_BAD_AUTH = 0x9A2  # of session 1
HALF_SENT = 5.0  # seconds that the shim waits for the rest of a message
LAST_WORD = bytes.fromhex("b54f7542cbd872a81a9d9dea839b2b8d747c7ebd5ea6615c40f42f44a6dbeba0")  # PCR 5, SHA-256


@pytest.fixture
def one(manager: Manager) -> Manager:
    """vTPM "a" is attached and has power: boot 1."""
    manager.ctl("create", "a")
    manager.ctl("attach", "a", "shim:a", "--boot", "1")
    return manager


@pytest.fixture
def shim(one: Manager) -> Iterator[Shim]:
    with shimmed(one) as running:
        yield running


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Path]:
    with bare_swtpm(tmp_path) as path:
        yield path


def pcr(qemu: FakeQemu, number: int = 11) -> bytes:
    response = qemu.execute(raw.pcr_read(number))
    assert raw.rc(response) == 0
    return response[-32:]


def extended(qemu: FakeQemu, number: int = 11) -> bytes:
    assert raw.rc(qemu.execute(raw.pcr_extend(number))) == 0
    return pcr(qemu, number)


def boot_of(manager: Manager) -> int:
    return int(manager.show("a")["boot"])


# -- answers -----------------------------------------------------------------------------------------------------------


def reset_established(locality: int) -> bytes:
    return struct.pack(">IB3x", Cmd.CMD_RESET_TPMESTABLISHED, locality)


WITHOUT_POWER: list[tuple[str, bytes]] = [
    ("GET_CAPABILITY", wire.plain(Cmd.CMD_GET_CAPABILITY)),
    ("GET_TPMESTABLISHED without power", wire.plain(Cmd.CMD_GET_TPMESTABLISHED)),
    ("CANCEL without power", wire.plain(Cmd.CMD_CANCEL_TPM_CMD)),
    ("STOP without power", wire.plain(Cmd.CMD_STOP)),
    *((f"SET_BUFFERSIZE {size}", wire.set_buffersize(size)) for size in (0, 3968, 0, 1, 0xAF8, 99999, 0)),
    *((f"SET_LOCALITY {locality} without power", wire.set_locality(locality)) for locality in (3, 5, 0)),
    ("RESET_TPMESTABLISHED without power", reset_established(3)),
]
WITH_POWER: list[tuple[str, bytes]] = [
    ("INIT", wire.init()),
    ("GET_TPMESTABLISHED", wire.plain(Cmd.CMD_GET_TPMESTABLISHED)),
    ("SET_BUFFERSIZE 0 with power", wire.set_buffersize(0)),
    ("SET_BUFFERSIZE 3968 with power", wire.set_buffersize(3968)),
    ("CANCEL", wire.plain(Cmd.CMD_CANCEL_TPM_CMD)),
    *((f"SET_LOCALITY {locality}", wire.set_locality(locality)) for locality in (0, 1, 2, 3, 4, 5, 6, 255)),
    *((f"RESET_TPMESTABLISHED {locality}", reset_established(locality)) for locality in range(6)),
    ("GET_TPMESTABLISHED again", wire.plain(Cmd.CMD_GET_TPMESTABLISHED)),
    ("INIT with power", wire.init()),
    ("STOP", wire.plain(Cmd.CMD_STOP)),
    ("STOP again", wire.plain(Cmd.CMD_STOP)),
    ("INIT of an arriving VM", wire.init(wire.PTM_INIT_FLAG_DELETE_VOLATILE)),
    ("SHUTDOWN", wire.plain(Cmd.CMD_SHUTDOWN)),
]
# what swtpm says, what the shim says, and why
DIFFERENT = {
    "GET_CAPABILITY": ("000000000000ffff", "00000000000034af"),  # state blobs, hash sequences, ... are not served
    # QEMU reads the whole structure whatever the result, and would wait for the rest
    "GET_TPMESTABLISHED without power": ("0000000a", "0000000000000000"),
    "SET_BUFFERSIZE 3968 with power": ("0000000a", "0000000a0000100000000af800001000"),
    "INIT of an arriving VM": ("00000000", "00000009"),  # its state did not come this way
}


def answers(path: Path, said: list[tuple[str, bytes]]) -> dict[str, str]:
    """What is answered on one connection, in hex."""
    with connect(path) as control:
        found = {}
        for number, (name, message) in enumerate(said):
            control.sendall(message)
            found[name if name not in found else f"{name} ({number})"] = control.recv(4096).hex()
    return found


def test_each_control_command_is_answered_as_by_swtpm_but_for_what_is_listed(shim: Shim, bare: Path) -> None:
    theirs, ours = (answers(path, WITHOUT_POWER + WITH_POWER) for path in (bare, shim.path))
    assert len(ours) == len(WITHOUT_POWER + WITH_POWER)
    assert {name: (theirs[name], ours[name]) for name in theirs if theirs[name] != ours[name]} == DIFFERENT


# -l and -r are left out: the tool sends a locality as one byte, QEMU as four, and the shim waits for the other three
IOCTLS = (["-c"], ["-C"], ["-e"], ["-b", "0"], ["-b", "4096"], ["--stop"], ["-s"])
# what swtpm_ioctl says about swtpm, and about the shim
IOCTLS_DIFFERENT = {
    "-c": ("ptm capability is 0xffff", "ptm capability is 0x34af"),
    "-e": ("TPM result from PTM_GET_TPMESTABLISHED: 0xa", "tpmEstablished is 0"),
}


def ioctl(path: Path, arguments: list[str]) -> str:
    """swtpm_ioctl's output, on a connection of its own."""
    argv = ["swtpm_ioctl", "--unix", str(path), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    return (done.stdout + done.stderr).strip()


def test_swtpms_own_tool_sees_a_swtpm(shim: Shim, bare: Path) -> None:
    ours = {" ".join(each): ioctl(shim.path, each) for each in IOCTLS}
    theirs = {" ".join(each): ioctl(bare, each) for each in IOCTLS}
    assert {name: (theirs[name], ours[name]) for name in theirs if theirs[name] != ours[name]} == IOCTLS_DIFFERENT


def test_init_of_swtpms_own_tool_is_that_of_an_arriving_vm_and_no_boot(shim: Shim, one: Manager) -> None:
    assert "0x9" in ioctl(shim.path, ["-i"])
    assert boot_of(one) == 1


def test_a_tpm_command_before_init_is_answered_as_by_swtpm(shim: Shim, bare: Path) -> None:
    probes = []
    for path in (bare, shim.path):
        with connect(path) as control:
            data, peer = socket.socketpair()
            with data, peer:
                socket.send_fds(control, [wire.plain(Cmd.CMD_SET_DATAFD)], [peer.fileno()])
                assert control.recv(4) == bytes(4)
                data.sendall(tpm.read_clock())
                probes.append(data.recv(4096))
    assert probes[0] == probes[1] == tpm.error_response(RC.TPM_RC_FAILURE)


def test_every_locality_may_reset_the_pcrs_that_it_may_reset_in_swtpm(shim: Shim, bare: Path) -> None:
    """TPM2_PCR_Reset of PCR 16 to 23 at localities 0 to 4: the response codes (PC Client Platform TPM Profile, 4.6)."""
    codes = []
    for path in (bare, shim.path):
        with FakeQemu(path) as qemu:
            qemu.boot()
            qemu.execute(tpm.startup())
            asked = [(locality, number) for locality in range(5) for number in range(16, 24)]
            codes.append([raw.rc(qemu.execute(raw.pcr_reset(number), locality)) for locality, number in asked])
    assert codes[0] == codes[1]
    assert {0, int(RC.TPM_RC_LOCALITY)} == set(codes[0])


def test_state_blobs_do_not_leave_and_the_vm_goes_on(shim: Shim) -> None:
    with shim.qemu().boot() as qemu:
        value = extended(qemu)
        with pytest.raises(Refused, match="0x101"):
            qemu.save()
        assert pcr(qemu) == value


def test_state_blobs_do_not_arrive_and_the_vtpm_is_untouched(shim: Shim, one: Manager) -> None:
    with shim.qemu() as qemu, pytest.raises(Refused, match="00000101"):
        qemu.arrive({Blob.PERMANENT: (2, b"another TPM's state")})
    assert boot_of(one) == 1


# -- resets ------------------------------------------------------------------------------------------------------------


def test_each_init_is_a_boot_that_the_manager_knows_and_pcrs_are_fresh_after_it(shim: Shim, one: Manager) -> None:
    with shim.qemu() as qemu:
        for boot in (2, 3, 4):
            qemu.boot()
            assert boot_of(one) == boot
            assert pcr(qemu) == ZERO
            assert extended(qemu) != ZERO


def test_firmwares_first_commands_are_answered_as_by_swtpm_and_a_sleeping_guest_finds_its_pcrs(
    shim: Shim, bare: Path
) -> None:
    change = tpm.hierarchy_change_auth(tpm.TPM_RH_PLATFORM, b"firmware's")
    sleep, wake = tpm.shutdown(tpm.TPM_SU_STATE), tpm.startup(tpm.TPM_SU_STATE)
    said = []
    for path in (bare, shim.path):
        with FakeQemu(path).power_on() as qemu:
            first = [qemu.execute(each) for each in (tpm.startup(), change, tpm.startup(), raw.pcr_extend(11), sleep)]
            qemu.power_on()
            then = [qemu.execute(each) for each in (wake, raw.pcr_read(11))]
            qemu.power_on()
            said.append(
                [*first, *then, qemu.execute(wake), qemu.execute(tpm.startup()), qemu.execute(raw.pcr_read(11))]
            )
    ours = [raw.rc(each) for each in said[1]]
    assert [raw.rc(each) for each in said[0]] == ours
    assert ours[:8] == [0, 0, RC.TPM_RC_INITIALIZE, 0, 0, 0, 0, 0x1C4]  # TPM_RC_VALUE of parameter 1: nothing to resume
    assert said[0][6][-32:] == said[1][6][-32:] != ZERO == said[1][9][-32:]


def test_boot_numbers_go_on_after_a_restart_of_the_shim_and_after_an_operators_boot(one: Manager) -> None:
    for boot in (2, 3):
        with shimmed(one) as shim, shim.qemu().boot() as qemu:
            assert extended(qemu) != ZERO and boot_of(one) == boot
            qemu.leave()
    until(lambda: not one.show("a")["live"], what="nobody is left")
    operators = one.ctl("start", "a", "--power-on")["boot"]
    with shimmed(one) as shim, shim.qemu().boot() as qemu:
        assert pcr(qemu) == ZERO and boot_of(one) == operators + 1


def test_a_vm_that_ends_leaves_the_vtpm_as_it_is(shim: Shim, one: Manager) -> None:
    ends: list[Callable[[FakeQemu], None]] = [FakeQemu.leave, FakeQemu.close, lambda qemu: qemu.stop(0)]
    for boot, end in enumerate(ends, 2):
        with shim.qemu().boot() as qemu:
            value = extended(qemu)
            end(qemu)
        until(lambda: not one.show("a")["live"], what="the shim has let go of the channel")
        one.ctl("detach", "a")
        one.ctl("attach", "a", "--boot", str(boot))
        assert one.guest("a").pcr(11) == value.hex()
        assert boot_of(one) == boot
        one.ctl("detach", "a")


def test_a_reset_in_the_middle_of_a_command_answers_it_with_failure_and_the_next_boot_is_whole(shim: Shim) -> None:
    with shim.qemu().boot() as qemu:
        qemu.data.sendall(raw.create_primary())
        qemu.stop(0)
        answer = qemu.data.recv(4096)
        assert raw.rc(answer) in (0, RC.TPM_RC_FAILURE)  # it may have been quicker
        qemu.boot()
        assert pcr(qemu) == ZERO and extended(qemu) != ZERO


def test_a_vtpm_whose_process_died_answers_failure_until_the_vms_next_reset(shim: Shim, one: Manager) -> None:
    with shim.qemu().boot() as qemu:
        extended(qemu)
        os.kill(one.swtpm_pid("a"), signal.SIGKILL)
        until(lambda: one.show("a")["state"] == "failed", what="the manager has noticed")
        assert raw.rc(qemu.execute(raw.pcr_read(11))) == RC.TPM_RC_FAILURE
        qemu.boot()
        assert pcr(qemu) == ZERO


# -- one QEMU after another --------------------------------------------------------------------------------------------


def test_a_second_qemu_is_turned_away_and_served_once_the_first_has_left(shim: Shim) -> None:
    with shim.qemu().boot() as first:
        value = extended(first)
        with pytest.raises((Gone, OSError)):
            shim.qemu()
        assert pcr(first) == value
    for _ in range(5):  # at once, whatever the shim has noticed by then
        with shim.qemu().boot() as next_one:
            assert pcr(next_one) == ZERO
    assert shim.log().count("another QEMU is turned away") == 1


def test_qemus_that_come_and_go_leave_no_descriptor(shim: Shim) -> None:
    held = set()
    for _ in range(8):
        with shim.qemu().boot() as qemu:
            extended(qemu)
            held.add(shim.descriptors())
    assert len(held) == 1


# -- the manager is away -----------------------------------------------------------------------------------------------


def enter_kernel(qemu: FakeQemu) -> None:
    """Firmware's last word."""
    digests = struct.pack(">IH", 1, tpm.TPM_ALG_SHA256) + LAST_WORD
    assert raw.rc(qemu.execute(tpm.command(tpm.CC.TPM2_PCR_Extend, digests, handles=(5,), auths=1))) == 0


def test_a_restart_of_the_manager_costs_the_vm_nothing_but_time_and_localities_are_as_before(
    shim: Shim, one: Manager
) -> None:
    with shim.qemu().boot() as qemu:
        value = extended(qemu)
        assert raw.rc(qemu.execute(raw.pcr_reset(20), 2)) == 0
        one.stop()
        qemu.data.sendall(raw.pcr_read(11))  # as firmware, which is not told to try again
        one.start()
        assert qemu.data.recv(4096)[-32:] == value  # at locality 2
        assert raw.rc(qemu.execute(raw.pcr_reset(20))) == 0
        assert pcr(qemu) == value and boot_of(one) == 2


def test_a_kernel_is_told_to_try_again_within_its_patience_and_firmware_is_not(shim: Shim, one: Manager) -> None:
    with shim.qemu().boot() as qemu:
        enter_kernel(qemu)
        value = pcr(qemu)
        one.stop()
        began = time.monotonic()
        assert raw.rc(qemu.execute(raw.pcr_read(11))) == RC.TPM_RC_RETRY
        assert 0.3 < time.monotonic() - began < 0.75
        one.start()
        until(lambda: raw.rc(qemu.execute(raw.pcr_read(11))) == 0, what="the manager serves again")
        assert pcr(qemu) == value


def test_an_init_waits_for_a_manager_that_comes_back(shim: Shim, one: Manager) -> None:
    with shim.qemu().boot() as qemu:
        extended(qemu)
        one.stop()
        qemu.stop(0)
        qemu.control.sendall(wire.init())
        one.start()
        assert qemu.receive(4) == bytes(4)
        assert raw.rc(qemu.execute(tpm.startup())) == 0
        assert pcr(qemu) == ZERO and boot_of(one) == 3


@contextmanager
def serving(manager: Manager) -> Iterator[Path]:
    """A shim in this process, whose limits can be changed; its socket."""
    path, (stop, wake) = manager.directory / "here", os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        lanes = Lanes(lambda: LocalClient(manager.directory / "shims.sock"), "test")
        host = HostLink(str(manager.directory / "host.sock"), "a", "", stop, threading.Lock())

        def link(introduce: Callable[[], bool]) -> Link:
            return Link("shim:a", 60.0, introduce, lambda where: lanes.lane(where.argument))

        server = Server(listener, link, host, stop)
        thread = threading.Thread(target=server.loop)
        thread.start()
        try:
            yield path
        finally:
            os.write(wake, b"x")
            thread.join()
            server.close()
            lanes.close()
            path.unlink()
            os.close(stop)
            os.close(wake)


def test_an_init_without_a_manager_fails_in_bounded_time_and_the_next_one_tries_again(
    one: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu_server, "INIT_LIMIT", 1.0)
    with serving(one) as path, FakeQemu(path) as qemu:
        one.stop()
        began = time.monotonic()
        with pytest.raises(Refused, match=f"{wire.TPM_FAIL:08x}"):
            qemu.power_on()
        assert time.monotonic() - began < 3.0
        assert raw.rc(qemu.execute(tpm.get_random(8))) == RC.TPM_RC_FAILURE
        one.start()
        qemu.boot()
        assert pcr(qemu) == ZERO and boot_of(one) == 2


def test_a_command_without_an_answer_fails_in_bounded_time_and_its_answer_is_nobody_elses(
    one: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu_server, "COMMAND_LIMIT", 1.0)
    with serving(one) as path, FakeQemu(path).boot() as qemu:
        value, pid = extended(qemu), one.swtpm_pid("a")
        os.kill(pid, signal.SIGSTOP)
        try:
            assert raw.rc(qemu.execute(tpm.get_random(8))) == RC.TPM_RC_FAILURE
            qemu.data.sendall(raw.pcr_read(11))
        finally:
            os.kill(pid, signal.SIGCONT)
        assert qemu.data.recv(4096)[-32:] == value


def test_a_shim_that_is_told_to_end_while_it_waits_for_the_manager_ends_at_once(one: Manager) -> None:
    with shimmed(one) as shim, shim.qemu() as qemu:
        one.stop()
        qemu.control.sendall(wire.init())
        began = time.monotonic()
        shim.stop()
        assert time.monotonic() - began < 5.0
        one.start()
        shim.start()


# -- mistakes ----------------------------------------------------------------------------------------------------------


def send(*parts: bytes, fds: int = 0) -> Callable[[FakeQemu], None]:
    """Send this on the control socket, with so many descriptors."""

    def on_control(qemu: FakeQemu) -> None:
        message = b"".join(parts)
        if fds:
            socket.send_fds(qemu.control, [message], [qemu.control.fileno()] * fds)
        else:
            qemu.control.sendall(message)

    return on_control


def command(data: bytes) -> Callable[[FakeQemu], None]:
    """Send this on the data socket."""
    return lambda qemu: qemu.data.sendall(data)


BLOB = struct.Struct(">IIII")
MISTAKES = {
    "a command that is none": (send(struct.pack(">I", 99)), "control command 99"),
    "a hash sequence": (send(struct.pack(">I", Cmd.CMD_HASH_START)), "control command 6"),
    "a blob too large": (send(BLOB.pack(Cmd.CMD_SET_STATEBLOB, 0, 1, 1 << 30)), "larger than any"),
    "a blob of no kind": (send(BLOB.pack(Cmd.CMD_SET_STATEBLOB, 0, 9, 1)), "no such blob"),
    "several descriptors": (send(wire.plain(Cmd.CMD_SET_DATAFD), fds=3), "more descriptors"),
    "descriptors one by one": (
        lambda qemu: [send(wire.plain(Cmd.CMD_SET_DATAFD)[:1], fds=1)(qemu) for _ in range(2)],
        "more descriptors",
    ),
    "two commands at once": (command(tpm.get_random(8) * 2), "a TPM command says"),
    "a size below the header's": (command(struct.pack(">HII", 0x8001, 9, 0x17B)), "a TPM command says 9"),
    "a size beyond all bounds": (command(struct.pack(">HII", 0x8001, 1 << 31, 0x17B)), "a TPM command says"),
    "a command that is too long": (command(struct.pack(">HII", 0x8001, 4097, 0x17B)), "a TPM command says 4097"),
}


def test_a_qemu_that_breaks_the_rules_is_let_go_with_the_cause_and_the_next_one_is_served(shim: Shim) -> None:
    held = set()
    for mistake, (act, cause) in MISTAKES.items():
        said = len(shim.log())
        with shim.qemu().boot() as qemu:
            assert pcr(qemu) == ZERO, mistake
            extended(qemu)
            held.add(shim.descriptors())
            act(qemu)
            with pytest.raises(Gone):
                qemu.receive(1)
        assert re.search(rf"QEMU is let go: .*{cause}", shim.log()[said:]), mistake
    assert len(held) == 1  # none has left a descriptor


def test_half_a_message_is_waited_for_in_silence_and_not_for_ever(shim: Shim) -> None:
    with shim.qemu().boot() as qemu:
        used, began = shim.processor_time(), time.monotonic()
        qemu.control.sendall(wire.init()[:6])
        with pytest.raises(Gone):
            qemu.receive(1)
        assert HALF_SENT - 0.5 < time.monotonic() - began < HALF_SENT + 3
        assert shim.processor_time() - used < 50  # half a second of five: it has slept
    assert "half a message" in shim.log()


def test_a_descriptor_with_a_command_that_takes_none_and_one_that_is_no_socket_are_closed(shim: Shim) -> None:
    with shim.qemu().boot() as qemu:
        before = shim.descriptors()
        for _ in range(20):
            send(wire.plain(Cmd.CMD_GET_CAPABILITY), fds=1)(qemu)
            assert len(qemu.receive(8)) == 8
            with open("/dev/null", "rb") as file:
                socket.send_fds(qemu.control, [wire.plain(Cmd.CMD_SET_DATAFD)], [file.fileno()])
            assert qemu.receive(4) == wire.result(wire.TPM_FAIL)
        assert shim.descriptors() == before
        assert pcr(qemu) == ZERO


# -- the command line --------------------------------------------------------------------------------------------------


def test_mistakes_of_the_command_line_are_named_at_once(one: Manager) -> None:
    one.ctl("create", "b")
    host, path = str(one.directory / "host.sock"), str(one.directory / "p")

    def attempt(channel: str, *options: str) -> tuple[int, str]:
        done = one.frontend("qemu", channel, *options)
        return done.returncode, done.stderr

    def named(channel: str, socket: str, vtpm: str, link: str) -> tuple[int, str]:
        return attempt(channel, "--vtpm", vtpm, "--host-link", link, "--socket", socket)

    good = f"unix:{one.directory}/shims.sock"
    one.ctl("attach", "b")
    for case, code, said in (
        (attempt(good), 2, "usage:"),
        (attempt(good, "--socket", path, "--vtpm", "a", "--vtpm", "a"), 2, "usage:"),
        (named("tcp:1", path, "a", host), 3, "is no channel"),
        (named(good, path, "b", host), 3, f"is attached to {one.channel('b')}"),
        (named(good, str(one.directory / "no/such"), "a", host), 3, "cannot listen"),
        (named(good, str(one.directory), "a", host), 3, "cannot listen"),
        (named(good, path, "a", str(one.directory / "nobody")), 4, "no manager answers"),
        (named(good, path, "c", host), 11, "has no vTPM 'c'"),
    ):
        assert case[0] == code and said in case[1], case
        assert code == 2 or (case[1].startswith("guest_frontend: ") and case[1].count("\n") == 1)
    with shimmed(one) as shim:
        assert named(good, str(shim.path), "a", host)[0] == 3
        with shim.qemu().boot() as qemu:
            assert pcr(qemu) == ZERO


def test_one_service_has_all_guests_that_a_directory_names(manager: Manager) -> None:
    names = ("a", "b", "c")
    for name in names:
        manager.ctl("create", name)
    directory = manager.directory / "guests"
    directory.mkdir()
    argv = [sys.executable, "-m", "guest_frontend", "qemu", f"unix:{manager.directory}/shims.sock"]
    argv += ["--host-link", str(manager.directory / "host.sock"), "--directory", str(directory)]
    with subprocess.Popen(argv, cwd=ROOT, env=environment(manager.directory)) as service:
        try:
            for name in ("a", "b", "no name"):
                (directory / f"{name}.guest").touch()
            until(lambda: all((directory / f"{name}.sock").exists() for name in ("a", "b")), 10, "two are served")
            with FakeQemu(directory / "a.sock").boot() as one, FakeQemu(directory / "b.sock").boot() as two:
                assert extended(one) != ZERO == pcr(two)
                (directory / "a.guest").unlink()
                (directory / "c.guest").write_text("")
                until(lambda: (directory / "c.sock").exists(), 10, "another one is served")
                until(lambda: not (directory / "a.sock").exists(), 10, "the first one is not any more")
                with pytest.raises((Gone, BrokenPipeError)):
                    pcr(one)
                with FakeQemu(directory / "c.sock").boot() as three:
                    assert pcr(three) == ZERO
                assert extended(two) != ZERO
        finally:
            service.terminate()
        assert service.wait(10) == 0
    assert not list(directory.glob("*.sock"))


def test_the_socket_that_a_killed_shim_has_left_is_taken_over(one: Manager) -> None:
    shim = Shim(one).start()
    shim.kill()
    assert shim.path.is_socket()
    with shimmed(one) as again, again.qemu().boot() as qemu:
        assert pcr(qemu) == ZERO
        assert again.path.stat().st_mode & 0o777 == 0o600
