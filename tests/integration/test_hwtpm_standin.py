"""The hardware TPM's stand-in: a real swtpm behind it, a QEMU without a VM (and once a real one) before it."""

from __future__ import annotations

import datetime
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from image.host import hwtpm, machine, vendor
from image.host.host import Host
from image.host.hwtpm import Arriving, HardwareTpm, Kind
from image.host.standin.session import KEPT
from manager_vm.crypto import Key
from manager_vm.errors import ConfigError, HostError
from manager_vm.keys.hwtpm import attest, auths, nv, ownership
from manager_vm.keys.hwtpm.connection import Connection
from manager_vm.trust import credential, evidence
from manager_vm.wire import swtpm as wire
from manager_vm.wire import tpm
from manager_vm.wire.swtpm import Blob, Cmd
from manager_vm.wire.tpm import CC
from tests.integration import raw
from tests.integration.fake_qemu import PATIENCE, FakeQemu, Gone, Refused, Stream
from tests.integration.harness import ROOT, processes, until

INDEX, KEY = 0x1500001, 0x81000001
OWNER_INDEX = 0x02060006  # TPMA_NV: OWNERWRITE, AUTHWRITE, OWNERREAD, AUTHREAD, NO_DA
DA_INDEX = 0x00060006  # without NO_DA: its use counts for the dictionary-attack logic
LOCKOUT_COUNTER = 0x20E  # TPM_PT_LOCKOUT_COUNTER
RSA_2048 = bytes.fromhex("0001000b00030472000000060080004300100800000000000000")  # TPMT_PUBLIC of a storage key
ZERO, CONTENT = bytes(32), b"12345678"
HALF_SENT = 5.0  # seconds that the stand-in waits for the rest


class Make(Protocol):
    """A hardware TPM in the directory of this name, ended with the test."""

    def __call__(self, name: str = "tpm", arriving: Arriving = Arriving.RESTORE) -> HardwareTpm:
        """See ``HardwareTpm``."""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path. Nothing that works there outlives the test."""
    with tempfile.TemporaryDirectory(prefix="vt") as name:
        yield Path(name)
        until(lambda: not processes(name), what="no process is left")
        assert list(Path(name).rglob("*.sock")) == []


@pytest.fixture
def make(directory: Path) -> Iterator[Make]:
    with ExitStack() as stack:

        def one(name: str = "tpm", arriving: Arriving = Arriving.RESTORE) -> HardwareTpm:
            made = HardwareTpm(directory / name, directory / f"{name}.log", arriving=arriving)
            stack.callback(made.close)
            return made

        yield one


def good(response: bytes) -> bytes:
    """The response to a command that must succeed."""
    assert raw.rc(response) == 0, hex(raw.rc(response))
    return response


def pcr(qemu: FakeQemu) -> bytes:
    """PCR 11, SHA-256."""
    return good(qemu.execute(raw.pcr_read(11)))[-32:]


def extend(qemu: FakeQemu) -> bytes:
    """Extend PCR 11; its value."""
    good(qemu.execute(raw.pcr_extend(11)))
    return pcr(qemu)


def furnish(qemu: FakeQemu, attributes: int = OWNER_INDEX) -> bytes:
    """An NV index with content and a persistent key; the key's response to ReadPublic."""
    good(qemu.execute(tpm.nv_define_space(INDEX, attributes, len(CONTENT), tpm.TPM_RH_OWNER)))
    good(qemu.execute(tpm.nv_write(INDEX, 0, CONTENT, tpm.TPM_RH_OWNER)))
    key = raw.handle_of(qemu.execute(raw.create_primary()))
    where = struct.pack(">I", KEY)
    good(qemu.execute(tpm.command(CC.TPM2_EvictControl, where, handles=(tpm.TPM_RH_OWNER, key), auths=1)))
    return good(qemu.execute(tpm.read_public(KEY)))


def content(qemu: FakeQemu) -> bytes:
    """What the NV index holds."""
    body = tpm.parse_response(good(qemu.execute(tpm.nv_read(INDEX, 0, len(CONTENT)))))[1]
    return tpm.parameters(body)[2:]


def strikes(qemu: FakeQemu) -> int:
    """The dictionary-attack counter."""
    answer = good(qemu.execute(tpm.get_capability(tpm.TPM_CAP_TPM_PROPERTIES, LOCKOUT_COUNTER, 1)))
    return int.from_bytes(answer[-4:], "big")


def descriptors(made: HardwareTpm) -> int:
    """Open descriptors of the stand-in. (swtpm 0.7.1 loses one at each INIT, whoever asks for it.)"""
    return len(os.listdir(f"/proc/{made.pid}/fd"))


# -- one TPM for all VMs of a host -------------------------------------------------------------------------------------


def test_qemus_probe_before_power_on_and_its_questions_are_answered(make: Make) -> None:
    with FakeQemu(make().socket) as qemu:
        assert qemu.probe.hex() == "80010000000a00000101"
        assert qemu.capabilities == 0x37AF
        qemu.boot()
        assert raw.rc(qemu.execute(tpm.get_random(8))) == 0


@pytest.mark.parametrize("killed", [True, False])
def test_what_is_permanent_survives_a_vm_and_pcrs_are_zero_after_the_next_power_on(make: Make, killed: bool) -> None:
    made = make()
    with FakeQemu(made.socket) as first:
        key = furnish(first.boot())
        owner = tpm.hierarchy_change_auth(tpm.TPM_RH_OWNER, b"secret")
        good(first.execute(owner))
        assert extend(first) != ZERO
        first.close() if killed else first.leave()
    with FakeQemu(made.socket) as second:
        second.boot()
        assert pcr(second) == ZERO
        assert content(second) == CONTENT
        assert second.execute(tpm.read_public(KEY)) == key
        assert raw.rc(second.execute(owner)) != 0
        assert strikes(second) == 0


def test_a_reset_of_the_vm_is_a_reset_of_the_tpm(make: Make) -> None:
    with FakeQemu(make().socket) as qemu:
        furnish(qemu.boot())
        for _ in range(3):
            assert extend(qemu) != ZERO
            qemu.power_on()
            assert raw.rc(qemu.execute(raw.pcr_read(11))) == tpm.RC.TPM_RC_INITIALIZE
            good(qemu.execute(tpm.startup()))
            assert pcr(qemu) == ZERO
            assert content(qemu) == CONTENT


def test_neither_resets_nor_power_cuts_of_a_vm_count_as_attacks(make: Make) -> None:
    made = make()
    with FakeQemu(made.socket) as qemu:
        furnish(qemu.boot(), DA_INDEX)
    for _ in range(5):
        with FakeQemu(made.socket) as qemu:
            for _ in range(2):
                qemu.boot()
                assert strikes(qemu) == 0
                assert raw.rc(qemu.execute(tpm.nv_read(INDEX, 0, 8))) == tpm.RC.TPM_RC_RETRY
                assert content(qemu) == CONTENT
    made.close()
    with FakeQemu(make().socket) as qemu:
        assert strikes(qemu.boot()) == 0


@pytest.mark.parametrize("cut", [True, False])
def test_the_next_host_on_the_directory_finds_the_same_tpm(make: Make, cut: bool) -> None:
    made = make()
    with FakeQemu(made.socket) as qemu:
        key = furnish(qemu.boot())
        seed = good(qemu.execute(raw.create_primary()))
    os.kill(made.pid, signal.SIGKILL) if cut else made.close()
    with FakeQemu(make().socket) as qemu:
        qemu.boot()
        assert content(qemu) == CONTENT
        assert qemu.execute(tpm.read_public(KEY)) == key
        assert good(qemu.execute(raw.create_primary()))[-34:] == seed[-34:]  # the key's name


def test_localities_are_qemus_through_resets_and_a_new_vm_starts_at_zero(make: Make) -> None:
    made = make()
    extend_20 = raw.pcr_extend(20)  # allowed at localities 1 to 3 (TCG PC Client Platform TPM Profile, 4.6.2)
    with FakeQemu(made.socket) as qemu:
        qemu.boot()
        assert raw.rc(qemu.execute(extend_20)) == tpm.RC.TPM_RC_LOCALITY
        assert raw.rc(qemu.execute(extend_20, locality=3)) == 0
        qemu.boot()
        assert raw.rc(qemu.execute(extend_20)) == 0
    with FakeQemu(made.socket) as qemu:
        assert raw.rc(qemu.boot().execute(extend_20)) == tpm.RC.TPM_RC_LOCALITY


# -- arriving VMs: restore ---------------------------------------------------------------------------------------------


def saved(made: HardwareTpm) -> tuple[Stream, bytes, int]:
    """A saved VM: the stream, PCR 11, the handle of a loaded key."""
    with FakeQemu(made.socket) as qemu:
        furnish(qemu.boot())
        value = extend(qemu)
        loaded = raw.handle_of(qemu.execute(raw.create_primary()))
        return qemu.save(), value, loaded


def test_a_saved_vm_is_restored_with_its_tpm_as_often_as_there_is_a_fresh_one(make: Make) -> None:
    stream, value, loaded = saved(make())
    for number in range(2):
        with FakeQemu(make(f"copy{number}").socket) as qemu:
            qemu.arrive(stream)
            assert pcr(qemu) == value
            assert content(qemu) == CONTENT
            good(qemu.execute(tpm.read_public(loaded)))
            assert extend(qemu) != value
            assert {kind: bool(data) for kind, (_, data) in qemu.save().items()} == {
                kind: bool(data) for kind, (_, data) in stream.items()
            }
            qemu.boot()
            assert pcr(qemu) == ZERO
            assert content(qemu) == CONTENT


def test_a_tpm_that_was_used_never_takes_another_ones_state(make: Make) -> None:
    stream, _, _ = saved(make())
    other = make("other")
    with FakeQemu(other.socket) as qemu:
        value = extend(qemu.boot())
        mine = good(qemu.execute(raw.create_primary()))[-34:]
    for again in (other, None):
        with FakeQemu((again or make("other")).socket) as qemu:
            with pytest.raises(Refused):
                qemu.arrive(stream)
            assert raw.rc(qemu.execute(raw.pcr_read(11))) == tpm.RC.TPM_RC_FAILURE
            qemu.boot()
            assert good(qemu.execute(raw.create_primary()))[-34:] == mine
            assert value != ZERO == pcr(qemu)
        other.close()


def test_state_that_is_none_is_refused_and_the_fresh_tpm_stays_what_it_was(make: Make) -> None:
    stream, value, loaded = saved(make())
    made = make("other")
    bad = [{**stream, Blob.PERMANENT: (0, junk)} for junk in (b"x" * 40, stream[Blob.PERMANENT][1][:-1], KEPT)]
    bad += [{**stream, Blob.VOLATILE: (0, b"x" * 40)}, {}]
    for each in bad:
        with FakeQemu(made.socket) as qemu, pytest.raises(Refused):
            qemu.arrive(each)
    with FakeQemu(made.socket) as qemu:
        assert pcr(qemu.arrive(stream)) == value
        theirs = good(qemu.execute(tpm.read_public(loaded)))[-34:]
    made = make("third")
    with FakeQemu(made.socket) as qemu, pytest.raises(Refused):
        qemu.arrive(bad[-2])
    with FakeQemu(made.socket) as qemu:
        assert good(qemu.boot().execute(raw.create_primary()))[-34:] != theirs


# -- arriving VMs: keep ------------------------------------------------------------------------------------------------


def test_a_vm_that_moves_leaves_its_tpm_behind_and_finds_the_next_hosts(make: Make) -> None:
    source, target = make("source"), make("target", Arriving.KEEP)
    with FakeQemu(target.socket) as receiver:
        key = furnish(receiver.boot())
        measured = extend(receiver)
        before = good(receiver.execute(tpm.read_public(KEY)))
    with FakeQemu(source.socket) as qemu:
        extend(qemu.boot())
        source.arriving = Arriving.KEEP
        stream = qemu.save()
        assert stream == {Blob.PERMANENT: (0, KEPT), Blob.VOLATILE: (0, b""), Blob.SAVESTATE: (0, b"")}
    with FakeQemu(target.socket) as arrived:
        arrived.arrive(stream)
        assert pcr(arrived) == measured
        assert arrived.execute(tpm.read_public(KEY)) == before == key
        extend(arrived)
        arrived.boot()
        assert pcr(arrived) == ZERO
        assert content(arrived) == CONTENT


def test_a_stream_with_a_tpms_state_is_swallowed_where_the_tpm_stays(make: Make) -> None:
    stream, value, _ = saved(make())
    made = make("other", Arriving.KEEP)
    with FakeQemu(made.socket) as qemu:
        measured = extend(extend_twice(qemu.boot()))
    with FakeQemu(made.socket) as qemu:
        assert pcr(qemu.arrive(stream)) == measured != value


def extend_twice(qemu: FakeQemu) -> FakeQemu:
    extend(qemu)
    extend(qemu)
    return qemu


def test_an_arriving_vm_gets_the_tpm_when_the_receiver_has_left(make: Make) -> None:
    made = make(arriving=Arriving.KEEP)
    with FakeQemu(made.socket) as receiver, FakeQemu(made.socket) as arrived:
        measured = extend(receiver.boot())
        arrived.arrive({Blob.PERMANENT: (0, KEPT)})
        assert raw.rc(arrived.execute(raw.pcr_read(11))) == tpm.RC.TPM_RC_RETRY
        assert pcr(receiver) == measured
        receiver.leave()
        until(lambda: raw.rc(arrived.execute(raw.pcr_read(11))) == 0)
        assert pcr(arrived) == measured


def test_what_an_arriving_vm_finds_can_be_chosen_while_the_tpm_runs(make: Make) -> None:
    made = make()
    with FakeQemu(made.socket) as qemu:
        qemu.boot()
        for mode in (Arriving.KEEP, Arriving.RESTORE, Arriving.KEEP):
            made.arriving = mode
            assert made.arriving is mode
            assert (qemu.save()[Blob.PERMANENT][1] == KEPT) == (mode is Arriving.KEEP)


# -- several QEMUs, and broken ones ------------------------------------------------------------------------------------


def test_a_second_vm_is_refused_at_its_power_on_and_the_first_does_not_notice(make: Make) -> None:
    made = make()
    with FakeQemu(made.socket) as first, FakeQemu(made.socket) as second:
        value = extend(first.boot())
        with pytest.raises(Refused):
            second.boot()
        assert raw.rc(second.execute(raw.pcr_extend(11))) == tpm.RC.TPM_RC_FAILURE
        assert pcr(first) == value
        first.close()
        with FakeQemu(made.socket) as third:
            assert pcr(third.boot()) == ZERO
        assert pcr(second.boot()) == ZERO


def test_a_real_qemu_works_with_it_and_a_second_one_ends_with_an_error(make: Make) -> None:
    made = make()
    argv = ["qemu-system-x86_64", "-M", machine.MACHINE, "-accel", "tcg", "-S", "-nodefaults", "-display", "none"]
    argv += ["-chardev", f"socket,id=hwtpm,path={made.socket}", "-tpmdev", "emulator,id=tpm0,chardev=hwtpm"]
    argv += ["-device", "tpm-crb,tpmdev=tpm0", "-qmp", "stdio"]
    said = "".join(f'{{"execute": "{verb}"}}\n' for verb in ("qmp_capabilities", "system_reset", "quit"))

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(argv, input=said, capture_output=True, text=True, timeout=60)

    with FakeQemu(made.socket) as first:
        value = extend(first.boot())
        done = run()
        assert done.returncode == 1 and "CMD_INIT" in done.stderr
        assert pcr(first) == value
    done = run()
    assert (done.returncode, done.stderr) == (0, "") and '"event": "RESET"' in done.stdout


def test_one_qemu_too_many_waits_until_another_has_left(make: Make) -> None:
    made = make()
    with ExitStack() as stack:
        several = [stack.enter_context(FakeQemu(made.socket)) for _ in range(4)]
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        waiting.connect(str(made.socket))
        waiting.sendall(wire.plain(Cmd.CMD_GET_CAPABILITY))
        assert not select.select([waiting], [], [], 0.3)[0]
        good(several[1].boot().execute(tpm.get_random(8)))
        several[2].close()
        assert select.select([waiting], [], [], PATIENCE)[0]
        assert waiting.recv(8) == wire.capabilities()


def test_half_a_message_hangs_nobody_and_is_not_waited_for_for_ever(make: Make) -> None:
    made = make()
    with FakeQemu(made.socket) as control, FakeQemu(made.socket) as data, FakeQemu(made.socket) as good_one:
        control.control.sendall(wire.set_stateblob(Blob.PERMANENT, 0, bytes(100))[:-1])
        data.data.sendall(tpm.startup()[:-1])
        started = time.monotonic()
        extend(good_one.boot())
        assert time.monotonic() - started < HALF_SENT / 2
        for half in (control, data):
            with pytest.raises(Gone):
                half.receive(1)
        assert HALF_SENT * 0.9 < time.monotonic() - started < HALF_SENT * 2
        assert pcr(good_one) != ZERO


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("control", b"\0\0\0\x63"),  # no such command
        ("control", b"\0\0\0\x0d" + b"\xff" * 12),  # a blob of 4 GiB
        ("data", b"\x80\x01\xff\xff\xff\xff\0\0\x01\x44"),  # a command of 4 GiB
        ("data", tpm.startup() + b"x"),
        ("data", bytes(10)),
    ],
)
def test_a_qemu_that_breaks_the_rules_loses_its_own_connection_only(make: Make, where: str, message: bytes) -> None:
    made = make()
    with FakeQemu(made.socket) as fine, FakeQemu(made.socket) as broken:
        value = extend(fine.boot())
        (broken.control if where == "control" else broken.data).sendall(message)
        with pytest.raises(Gone):
            broken.receive(1)
        assert pcr(fine) == value


def test_a_data_socket_that_is_none_or_one_too_many_is_refused_and_closed(make: Make, directory: Path) -> None:
    made = make()
    with FakeQemu(made.socket) as qemu, open(directory / "file", "w+b") as file:
        before = descriptors(made)
        for fds in ([], [file.fileno()], [qemu.data.fileno()]):
            socket.send_fds(qemu.control, [wire.plain(Cmd.CMD_SET_DATAFD)], fds)
            with pytest.raises(Refused):
                qemu.done(qemu.receive(4))
        socket.send_fds(qemu.control, [wire.plain(Cmd.CMD_CANCEL_TPM_CMD)], [file.fileno()])
        qemu.done(qemu.receive(4))
        extend(qemu.boot())
        assert descriptors(made) == before


def test_a_vm_that_is_killed_during_a_long_command_leaves_the_tpm_to_the_next_one(make: Make) -> None:
    made = make()
    for _ in range(3):
        with FakeQemu(made.socket) as qemu:
            qemu.boot()
            qemu.data.sendall(tpm.create_primary(tpm.TPM_RH_NULL, RSA_2048))
        with FakeQemu(made.socket) as qemu:
            assert pcr(qemu.boot()) == ZERO
            assert len(good(qemu.execute(tpm.get_random(8)))) == 20


def test_no_descriptor_is_left_of_200_qemus(make: Make) -> None:
    made = make()
    before = descriptors(made)
    for number in range(200):
        with FakeQemu(made.socket) as qemu:
            if number % 4:
                qemu.boot()
            if number % 2:
                qemu.leave()
    until(lambda: descriptors(made) == before, what=f"{before} descriptors again")


# -- the end of things -------------------------------------------------------------------------------------------------


def test_a_dead_swtpm_is_reported_with_its_log_and_the_vm_sees_its_tpm_go(make: Make, directory: Path) -> None:
    made = make()
    with FakeQemu(made.socket) as qemu:
        furnish(qemu.boot())
        os.kill(made.swtpm_pid, signal.SIGKILL)
        with pytest.raises(Gone):
            qemu.receive(1)
    until(lambda: not made.running())
    with pytest.raises(HostError, match=r"hardware TPM \(swtpm\) ended with status -9.*swtpm\.log"):
        made.check()
    with pytest.raises(HostError, match=r"tpm\.log"):
        made.arriving = Arriving.KEEP
    made.close()
    with FakeQemu(make().socket) as qemu:
        assert content(qemu.boot()) == CONTENT


def test_the_next_vm_gets_the_same_tpm_after_its_death_and_another_one_only_if_that_is_wanted(directory: Path) -> None:
    where = directory / "tpm"
    with ExitStack() as stack:
        made = hwtpm.provide(None, where, Arriving.RESTORE, new=False)
        stack.callback(made.close)
        with FakeQemu(made.socket) as qemu:
            key = furnish(qemu.boot())
        assert hwtpm.provide(made, where, Arriving.KEEP, new=False) is made
        assert made.arriving is Arriving.KEEP
        os.kill(made.pid, signal.SIGKILL)
        made = hwtpm.provide(made, where, Arriving.KEEP, new=False)
        stack.callback(made.close)
        with FakeQemu(made.socket) as qemu:
            assert qemu.boot().execute(tpm.read_public(KEY)) == key
        made = hwtpm.provide(made, where, Arriving.RESTORE, new=True)
        stack.callback(made.close)
        with FakeQemu(made.socket) as qemu:
            assert raw.rc(qemu.boot().execute(tpm.read_public(KEY))) != 0


def test_a_tpm_whose_state_is_damaged_is_reported_and_not_made_anew(make: Make, directory: Path) -> None:
    made = make()
    with FakeQemu(made.socket) as qemu:
        furnish(qemu.boot())
    made.close()
    state = directory / "tpm/tpm2-00.permall"
    damaged = state.read_bytes()[:-9]
    state.write_bytes(damaged)
    with pytest.raises(HostError, match=r"hardware TPM .*(ended|damaged).*tpm\.log"):
        make()
    assert state.read_bytes() == damaged


def test_a_directory_has_one_tpm_and_a_second_stand_in_does_not_disturb_it(make: Make) -> None:
    made = make()
    with FakeQemu(made.socket) as qemu:
        value = extend(qemu.boot())
        with pytest.raises(HostError, match=r"in use by another host.*tpm\.log"):
            make()
        assert pcr(qemu) == value
        with FakeQemu(made.socket) as another:
            assert another.capabilities


def test_the_stand_in_and_its_swtpm_end_with_their_owner_even_if_that_is_killed(directory: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\nfrom image.host.hwtpm import HardwareTpm\n"
        "made = HardwareTpm(Path(sys.argv[1]) / 'tpm', Path(sys.argv[1]) / 'log')\n"
        "print(made.pid, made.swtpm_pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(directory)], stdout=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdout is not None
        pids = child.stdout.readline().split()
        with FakeQemu(directory / "tpm/control.sock") as qemu:
            extend(qemu.boot())
            child.kill()
            with pytest.raises(Gone):
                qemu.receive(1)
    assert len(pids) == 2
    until(lambda: not processes(str(directory)))
    (directory / "tpm/control.sock").unlink(missing_ok=True)  # what a killed one leaves


def test_passthrough_is_refused_with_the_reason_before_anything_is_started(directory: Path) -> None:
    with pytest.raises(ConfigError, match="policy, measured by the launcher, over the host's PCRs"):
        Host(directory / "host", directory, kind=Kind.PASSTHROUGH)
    assert not (directory / "host").exists()
    argv = [sys.executable, "-m", "image.host", "run", "--hwtpm", "passthrough", "--dir", str(directory / "host")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == ConfigError.exit_code and "host's PCRs" in done.stderr
    assert not (directory / "host").exists()


class _Over:
    """A QEMU as a TPM, for those who ask for one."""

    def __init__(self, qemu: FakeQemu) -> None:
        self._qemu = qemu

    def execute(self, command: bytes) -> bytes:
        return self._qemu.execute(command)


def test_a_new_host_s_tpm_has_its_vendor_s_certificates_and_can_be_enrolled(directory: Path) -> None:
    where = directory / "tpm"
    with ExitStack() as stack:
        made = hwtpm.provide(None, where, Arriving.RESTORE, new=False)
        stack.callback(made.close)
        connection = Connection(_Over(stack.enter_context(FakeQemu(made.socket)).boot()))
        stack.callback(connection.close)
        srk = ownership.find_or_make_srk(connection)
        nv.define_revocation(connection)
        mine = auths.derive(Key.random(), srk)
        ownership.take(connection, mine)
        certificate = attest.ek_certificate(connection, "rsa2048")
        assert certificate is not None and attest.ek_certificate(connection, "ecc-p256") is None
        said = evidence.pack(
            certificate, attest.ek_public(connection, mine, "rsa2048"), attest.make_ak(connection, mine)
        )
        vendors = evidence.load_vendors(where / vendor.VENDOR_CA)
        found = evidence.verify(said, vendors, datetime.datetime.now(datetime.UTC))
        sealed = credential.make(found.ek, found.ak.name, b"a secret")
        assert attest.activate(connection, mine, found.kind, sealed.blob, sealed.secret) == b"a secret"
        before = (where / vendor.VENDOR_CA).read_bytes()
        vendor.manufacture(where, directory / "again.log")
        assert (where / vendor.VENDOR_CA).read_bytes() == before
