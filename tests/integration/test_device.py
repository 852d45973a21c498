"""``device`` between a kernel and a manager: one end of a socket pair stands for the descriptor that the kernel's
tpm_vtpm_proxy gives (one read = one command, one write = one response)."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pytest

from guest_frontend import device, vtpm_proxy
from guest_frontend.link import Link
from manager_vm.errors import ConfigError
from manager_vm.wire import tpm
from manager_vm.wire.tpm import RC
from tests.integration.harness import Manager, until
from tests.integration.raw import rc

_PATIENCE = 10.0  # seconds for what has to come
_SET_LOCALITY = tpm.command(vtpm_proxy.TPM2_CC_SET_LOCALITY, b"\0")


class Kernel:
    """The kernel's side of a device that ``serve`` serves in a thread of its own."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._near, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._near.settimeout(_PATIENCE)
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        device.serve(self._far.fileno(), self.link, self._stop_read)

    def send(self, command: bytes) -> None:
        """A command, whether or not the one before was answered (the kernel gives up after 750 ms to 2 s)."""
        self._near.sendall(command)

    def receive(self) -> bytes:
        """The next response."""
        return self._near.recv(tpm.MAX_COMMAND)

    def execute(self, command: bytes) -> bytes:
        """A TPM is one method."""
        self.send(command)
        return self.receive()

    def refuse_responses(self) -> None:
        """Writes fail from now on (the kernel's do when nobody waits any more)."""
        self._near.shutdown(socket.SHUT_RD)

    def remove(self) -> None:
        """The kernel closes its side."""
        self._near.close()

    def stop(self) -> None:
        """SIGTERM's byte in the pipe."""
        os.write(self._stop_write, b"x")

    def ended(self) -> bool:
        """Whether ``serve`` returns."""
        self._thread.join(_PATIENCE)
        return not self._thread.is_alive()

    def __enter__(self) -> Kernel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        assert self.ended()
        self.link.close()
        for each in (self._near, self._far):
            each.close()
        os.close(self._stop_read)
        os.close(self._stop_write)


def random_bytes(response: bytes) -> int:
    """How many a successful GetRandom gave."""
    assert rc(response) == 0, hex(rc(response))
    return int.from_bytes(response[10:12], "big")


@pytest.fixture
def kernel(manager: Manager) -> Iterator[Kernel]:
    """A device on vTPM "a"; commands wait 10 s for it, not 450 ms: the machine may be slow."""
    manager.add("a")
    with Kernel(manager.link("a")) as made:
        yield made


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Kernel]:
    """A device whose manager is not there."""
    with Kernel(Link(f"unix:{tmp_path}/none.sock")) as made:
        yield made


# -- commands -------------------------------------------------------------------------------------------------


def test_commands_are_answered_one_after_the_other_by_the_vtpm(manager: Manager, kernel: Kernel) -> None:
    before = manager.show("a")["last_seq"]
    assert [random_bytes(kernel.execute(tpm.get_random(count))) for count in range(1, 9)] == list(range(1, 9))
    assert manager.show("a")["last_seq"] == before + 8


def test_a_locality_is_set_without_asking_the_vtpm(manager: Manager, kernel: Kernel) -> None:
    before = manager.show("a")["last_seq"]
    assert kernel.execute(_SET_LOCALITY) == tpm.error_response(RC.TPM_RC_SUCCESS)
    assert manager.show("a")["last_seq"] == before
    assert random_bytes(kernel.execute(tpm.get_random(8))) == 8


@pytest.mark.parametrize(
    "command",
    [b"\x80\x01\0\0\0\x06", tpm.get_random(8)[:-1], tpm.get_random(8) + b"\0"],
    ids=["six bytes", "too short", "too long"],
)
def test_a_command_of_a_wrong_size_gets_an_error_and_the_device_goes_on(kernel: Kernel, command: bytes) -> None:
    """Whoever may open /dev/tpm0 can write these: the kernel demands six bytes."""
    assert rc(kernel.execute(command)) == RC.TPM_RC_COMMAND_SIZE
    assert random_bytes(kernel.execute(tpm.get_random(8))) == 8


def test_the_answer_to_a_command_that_the_kernel_gave_up_is_never_written(
    manager: Manager, kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    before = manager.show("a")["last_seq"]
    pid = manager.swtpm_pid("a")
    os.kill(pid, signal.SIGSTOP)
    try:
        kernel.send(tpm.get_random(11))
        time.sleep(0.3)  # it is on its way to swtpm
        kernel.send(tpm.get_random(22))
        kernel.send(_SET_LOCALITY)  # when this is answered, the one before has been read
        assert kernel.receive() == tpm.error_response(RC.TPM_RC_SUCCESS)
        assert "the kernel gave up on a command; its response will be dropped" in caplog.text
    finally:
        os.kill(pid, signal.SIGCONT)
    assert random_bytes(kernel.receive()) == 22
    assert random_bytes(kernel.execute(tpm.get_random(3))) == 3
    assert manager.show("a")["last_seq"] == before + 3  # the first one was executed, too


def test_of_several_commands_that_were_given_up_only_the_last_is_answered(manager: Manager, kernel: Kernel) -> None:
    pid = manager.swtpm_pid("a")
    os.kill(pid, signal.SIGSTOP)
    try:
        for count in (11, 12, 13, 14):
            kernel.send(tpm.get_random(count))
        kernel.send(_SET_LOCALITY)
        assert kernel.receive() == tpm.error_response(RC.TPM_RC_SUCCESS)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert random_bytes(kernel.receive()) == 14
    assert random_bytes(kernel.execute(tpm.get_random(3))) == 3


def test_without_a_manager_the_kernel_is_told_to_try_again_before_it_gives_up(alone: Kernel) -> None:
    began = time.monotonic()
    assert rc(alone.execute(tpm.get_random(8))) == RC.TPM_RC_RETRY
    assert time.monotonic() - began > 0.4
    assert alone.execute(_SET_LOCALITY) == tpm.error_response(RC.TPM_RC_SUCCESS)


# -- the end --------------------------------------------------------------------------------------------------


def test_a_stop_ends_it_although_a_command_is_out(manager: Manager, kernel: Kernel) -> None:
    pid = manager.swtpm_pid("a")
    os.kill(pid, signal.SIGSTOP)
    try:
        kernel.send(tpm.get_random(8))
        kernel.stop()
        assert kernel.ended()
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_kernel_that_closes_the_device_ends_it(alone: Kernel) -> None:
    alone.remove()
    assert alone.ended()


def test_a_kernel_that_closes_the_device_while_a_command_is_out_ends_it(manager: Manager, kernel: Kernel) -> None:
    pid = manager.swtpm_pid("a")
    os.kill(pid, signal.SIGSTOP)
    try:
        kernel.send(tpm.get_random(8))
        kernel.remove()
        assert kernel.ended()
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_kernel_that_does_not_take_a_response_is_survived(
    manager: Manager, kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    def refused() -> int:
        return caplog.text.count("the kernel does not take a response any more")

    before = manager.show("a")["last_seq"]
    kernel.refuse_responses()
    kernel.send(tpm.get_random(8))
    until(lambda: refused() == 1, what="the first response is refused")
    kernel.send(tpm.get_random(8))
    until(lambda: refused() == 2, what="the second response is refused")
    assert manager.show("a")["last_seq"] == before + 2


def test_waiting_for_the_manager_ends_when_it_answers_or_at_a_stop(manager: Manager, tmp_path: Path) -> None:
    manager.add("a")
    stop_read, stop_write = os.pipe()
    link, nowhere = Link(manager.channel("a")), Link(f"unix:{tmp_path}/none.sock")
    try:
        assert device.await_manager(link, stop_read)
        assert link.ready
        os.write(stop_write, b"x")
        assert not device.await_manager(nowhere, stop_read)
    finally:
        link.close()
        os.close(stop_read)
        os.close(stop_write)


# -- around it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_where_it_wants_to_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"\0{name}" if abstract else name)
        systemd.settimeout(_PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else name)
        device.notify("READY=1")
        assert systemd.recv(100) == b"READY=1"
    monkeypatch.delenv("NOTIFY_SOCKET")
    device.notify("READY=1")


def test_a_kernel_without_the_module_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vtpm_proxy, "DEVICE", tmp_path / "vtpmx")
    with pytest.raises(ConfigError, match="vtpmx does not exist; load the module: modprobe tpm_vtpm_proxy"):
        vtpm_proxy.create()


def test_a_device_that_cannot_be_opened_or_makes_no_tpm_is_an_error_and_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(vtpm_proxy, "DEVICE", tmp_path)
    with pytest.raises(ConfigError, match=f"cannot open {tmp_path}: Is a directory; .*must be root"):
        vtpm_proxy.create()
    monkeypatch.setattr(vtpm_proxy, "DEVICE", tmp_path / "file")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"the kernel refuses a new TPM device \(ENOTTY\)"):
        vtpm_proxy.create()
    assert len(os.listdir("/proc/self/fd")) == before
