"""vchan/vfio on a fake sysfs and a fake /dev/vfio: what is missing is named with its remedy; vchan/address: CHANNEL."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manager_vm.errors import BusyError, ConfigError, UnreachableError, VtpmManagerError
from manager_vm.vchan import address, ivshmem, vfio
from manager_vm.vchan.address import Address, Kind
from manager_vm.vchan.vfio import VfioDevice

ADDRESS = "0000:05:00.0"
IVSHMEM = (0x1AF4, 0x1110)
PAGE = 4096
CONFIG = 7  # VFIO_PCI_CONFIG_REGION_INDEX
OFFSET = {0: 0, 2: PAGE, CONFIG: 3 * PAGE}  # of regions in the device's file
SIZE = {0: 256, 2: 2 * PAGE, CONFIG: 256}


class FakePci:
    """Devices, drivers and IOMMU groups as sysfs shows them (Documentation/ABI/testing/sysfs-bus-pci)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.devices = root / "devices"
        self.devices.mkdir()
        self.probe = root / "drivers_probe"
        self.probe.write_text("")

    def plug(
        self, name: str = ADDRESS, ids: tuple[int, int] = IVSHMEM, group: str = "7", driver: str = "vfio-pci"
    ) -> Path:
        """A device; "" = no IOMMU group, no driver."""
        device = self.devices / name
        device.mkdir()
        (device / "vendor").write_text(f"0x{ids[0]:04x}\n")
        (device / "device").write_text(f"0x{ids[1]:04x}\n")
        (device / "driver_override").write_text("(null)\n")
        if group:
            self._link(device / "iommu_group", self.root / "iommu_groups" / group)
        if driver:
            self._link(device / "driver", self.root / "drivers" / driver)
            (device / "driver" / "unbind").write_text("")
        return device

    def _link(self, link: Path, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)


class FakeVfio:
    """/dev/vfio as linux/vfio.h has it: opens files of its own, remembers which. ``errors``: what open or a request
    fails with."""

    CONTAINER, GROUP = "/dev/vfio/vfio", "/dev/vfio/7"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.errors: dict[str | int, int] = {}
        self.viable = True
        self.opened: list[int] = []
        self.interrupts: list[tuple[int, ...]] = []
        self.device_file = directory / "device"
        self.device_file.write_bytes(bytes(4 * PAGE))
        self._open, self._names = os.open, dict[int, str]()

    def open(self, path: str | Path, flags: int, *rest: Any, **more: Any) -> int:
        """open(2)."""
        if not str(path).startswith("/dev/vfio/"):
            return self._open(path, flags, *rest, **more)
        if str(path) not in (self.CONTAINER, self.GROUP):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        self._fail(str(path))
        return self._new(str(path), self.directory / Path(path).name)

    def _new(self, name: str, file: Path) -> int:
        fd = self._open(file, os.O_RDWR | os.O_CREAT)
        self._names[fd] = name
        self.opened.append(fd)
        return fd

    def _fail(self, what: str | int) -> None:
        if what in self.errors:
            raise OSError(self.errors[what], os.strerror(self.errors[what]))

    def ioctl(self, fd: int, request: int, argument: Any = 0, mutate: bool = True) -> int:
        """ioctl(2): numbers are _IO(';', 100 + n)."""
        number = request - (ord(";") << 8 | 100)
        self._fail(number)
        return _REQUESTS[number](self, fd, argument)

    def _set_iommu(self, fd: int, kind: int) -> int:
        assert (self._names[fd], kind) == (self.CONTAINER, 1)  # VFIO_TYPE1_IOMMU
        return 0

    def _group_status(self, fd: int, status: bytearray) -> int:
        assert (self._names[fd], struct.unpack("=II", status)[0]) == (self.GROUP, 8)
        struct.pack_into("=I", status, 4, 1 if self.viable else 0)
        return 0

    def _group_container(self, fd: int, container: bytes) -> int:
        assert (self._names[fd], self._names[struct.unpack("=i", container)[0]]) == (self.GROUP, self.CONTAINER)
        return 0

    def _device_fd(self, fd: int, name: bytearray) -> int:
        assert (self._names[fd], bytes(name)) == (self.GROUP, ADDRESS.encode() + b"\0")
        return self._new("device", self.device_file)

    def _region_info(self, fd: int, info: bytearray) -> int:
        size, _, index, *_ = struct.unpack("=IIIIQQ", info)
        assert (self._names[fd], size) == ("device", 32)
        struct.pack_into("=QQ", info, 16, SIZE[index], OFFSET[index])
        return 0

    def _set_irqs(self, fd: int, request: bytes) -> int:
        words = struct.unpack(f"={len(request) // 4}I", request)
        assert (self._names[fd], words[0], words[3], words[4]) == ("device", len(request), 0, len(words) - 5)
        self.interrupts.append((words[1], words[2], *words[5:]))
        return 0


_REQUESTS: dict[int, Callable[[FakeVfio, int, Any], int]] = {
    2: FakeVfio._set_iommu,
    3: FakeVfio._group_status,
    4: FakeVfio._group_container,
    6: FakeVfio._device_fd,
    8: FakeVfio._region_info,
    10: FakeVfio._set_irqs,
}


@pytest.fixture
def pci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePci:
    """A machine without devices."""
    fake = FakePci(tmp_path)
    monkeypatch.setattr(vfio, "PCI_DEVICES", fake.devices)
    return fake


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeVfio:
    """The vfio of that machine."""
    directory = tmp_path / "vfio"
    directory.mkdir()
    fake = FakeVfio(directory)
    monkeypatch.setattr(os, "open", fake.open)
    monkeypatch.setattr(fcntl, "ioctl", fake.ioctl)
    return fake


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


# -- finding --------------------------------------------------------------------------------------------------


def test_devices_are_found_by_both_ids_in_order(pci: FakePci) -> None:
    for number in (6, 3, 9, 5, 8, 4):
        pci.plug(f"0000:0{number}:00.0")
    pci.plug("0000:01:00.0", (0x1AF4, 0x1041))
    pci.plug("0000:02:00.0", (0x8086, 0x1110))
    assert vfio.find(*IVSHMEM) == [f"0000:0{number}:00.0" for number in (3, 4, 5, 6, 8, 9)]
    assert vfio.find(0x1AF4, 0x1111) == []


def test_no_pci_bus_and_a_device_that_is_just_unplugged_are_no_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vfio, "PCI_DEVICES", tmp_path / "none")
    assert vfio.find(*IVSHMEM) == []
    (tmp_path / "0000:00:01.0").symlink_to("gone")
    monkeypatch.setattr(vfio, "PCI_DEVICES", tmp_path)
    assert vfio.find(*IVSHMEM) == []
    with pytest.raises(UnreachableError, match="is the channel plugged in"):
        address.connect(address.parse("ivshmem"))


@pytest.mark.parametrize("end", [address.serve, address.connect])
def test_ivshmem_alone_means_the_only_such_device(pci: FakePci, end: Callable[[Address], object]) -> None:
    with pytest.raises(UnreachableError, match="no ivshmem device; is the channel plugged in"):
        end(address.parse("ivshmem"))
    pci.plug("0000:06:00.0", group="")
    with pytest.raises(ConfigError, match=r"0000:06:00\.0 has no IOMMU group"):
        end(address.parse("ivshmem"))
    pci.plug(group="")
    with pytest.raises(ConfigError, match=r"several.*name one: ivshmem:0000:05:00\.0, ivshmem:0000:06:00\.0"):
        end(address.parse("ivshmem"))
    assert (ivshmem.VENDOR, ivshmem.DEVICE) == IVSHMEM


# -- binding --------------------------------------------------------------------------------------------------


def test_a_device_that_is_not_there_can_come_later(pci: FakePci) -> None:
    with pytest.raises(UnreachableError, match=rf"there is no PCI device {ADDRESS}; is it plugged in\?"):
        VfioDevice(ADDRESS)


def test_a_device_without_iommu_group_names_the_viommu_and_the_kernel_argument(pci: FakePci) -> None:
    pci.plug(group="")
    with pytest.raises(ConfigError) as refused:
        VfioDevice(ADDRESS)
    for part in (ADDRESS, "vIOMMU", "-device intel-iommu,intremap=on", "intel_iommu=on"):
        assert part in str(refused.value)


def test_a_device_is_taken_from_its_driver_and_given_to_vfio(pci: FakePci, kernel: FakeVfio) -> None:
    device = pci.plug(driver="uio_ivshmem")
    VfioDevice(ADDRESS).close()
    assert (device / "driver_override").read_text() == "vfio-pci"
    assert (device / "driver" / "unbind").read_text() == ADDRESS
    assert pci.probe.read_text() == ADDRESS


def test_a_device_that_vfio_has_already_is_left_alone(pci: FakePci, kernel: FakeVfio) -> None:
    device = pci.plug()
    VfioDevice(ADDRESS).close()
    assert (device / "driver_override").read_text() == "(null)\n"
    assert (device / "driver" / "unbind").read_text() == pci.probe.read_text() == ""


def test_a_device_that_no_driver_takes_is_an_error_that_names_the_module(pci: FakePci) -> None:
    pci.plug(driver="")
    with pytest.raises(ConfigError, match=rf"no driver took {ADDRESS}; modprobe vfio-pci"):
        VfioDevice(ADDRESS)
    assert pci.probe.read_text() == ADDRESS


@pytest.mark.parametrize("refused", ["driver_override", "driver/unbind", "drivers_probe"])
def test_a_kernel_that_refuses_to_bind_is_an_error_that_names_module_and_root(pci: FakePci, refused: str) -> None:
    device = pci.plug(driver="uio_ivshmem")
    path = pci.probe if refused == "drivers_probe" else device / refused
    path.unlink()
    path.mkdir()  # so that writing fails also for root
    with pytest.raises(ConfigError, match=rf"cannot give {ADDRESS} to vfio-pci: .*; modprobe vfio-pci, as root"):
        VfioDevice(ADDRESS)


# -- opening --------------------------------------------------------------------------------------------------


def test_an_opened_device_has_memory_and_bus_mastering_enabled_and_keeps_its_other_bits(
    pci: FakePci, kernel: FakeVfio
) -> None:
    pci.plug()
    command = OFFSET[CONFIG] + 4
    before = bytearray(kernel.device_file.read_bytes())
    before[command : command + 2] = (0x0400).to_bytes(2, "little")
    kernel.device_file.write_bytes(before)
    VfioDevice(ADDRESS).close()
    before[command : command + 2] = (0x0406).to_bytes(2, "little")
    assert kernel.device_file.read_bytes() == before


def test_regions_are_mapped_and_addressed_where_the_kernel_says(pci: FakePci, kernel: FakeVfio) -> None:
    pci.plug()
    device = VfioDevice(ADDRESS)
    with device.map(2, PAGE) as memory:
        memory[0:4] = b"ring"
    assert kernel.device_file.read_bytes()[PAGE : PAGE + 4] == b"ring"
    fd, offset = device.registers(2)
    assert os.pread(fd, 4, offset) == b"ring"
    with pytest.raises(ConfigError, match=f"BAR 2 of the device has {2 * PAGE} bytes; {3 * PAGE} are needed"):
        device.map(2, 3 * PAGE)
    device.close()


def test_each_vector_and_the_unplug_request_signal_the_event_they_were_given(pci: FakePci, kernel: FakeVfio) -> None:
    pci.plug()
    device = VfioDevice(ADDRESS)
    device.route_interrupts([31, 32])
    device.route_unplug(33)
    device.close()
    eventfd_trigger, msix, request = 1 << 2 | 1 << 5, 2, 4
    assert kernel.interrupts == [(eventfd_trigger, msix, 31, 32), (eventfd_trigger, request, 33)]


def test_closing_frees_all_descriptors_once(pci: FakePci, kernel: FakeVfio) -> None:
    pci.plug()
    device = VfioDevice(ADDRESS)
    assert len(kernel.opened) == 3 and all(is_open(fd) for fd in kernel.opened)
    device.close()
    device.close()
    assert not any(is_open(fd) for fd in kernel.opened)


GROUP_STATUS, SET_CONTAINER, SET_IOMMU, DEVICE_FD, REGION_INFO = 3, 4, 2, 6, 8


@pytest.mark.parametrize(
    ("what", "code", "error", "text"),
    [
        (FakeVfio.CONTAINER, errno.ENOENT, UnreachableError, f"{ADDRESS} cannot be opened: No such file"),
        (FakeVfio.GROUP, errno.EBUSY, BusyError, f"{ADDRESS} is open in another process; stop that one first"),
        (
            FakeVfio.GROUP,
            errno.ENOENT,
            UnreachableError,
            "/dev/vfio/7 is not there: 0000:05:00.0 is just being plugged, or modprobe vfio-pci, as root",
        ),
        (FakeVfio.GROUP, errno.EACCES, ConfigError, "cannot open /dev/vfio/7: Permission denied; .*as root"),
        (GROUP_STATUS, errno.ENODEV, UnreachableError, "cannot be opened: No such device; is it unplugged"),
        (SET_CONTAINER, errno.EINVAL, UnreachableError, "cannot be opened: Invalid argument"),
        (SET_IOMMU, errno.EPERM, UnreachableError, "cannot be opened: Operation not permitted"),
        (DEVICE_FD, errno.ENODEV, UnreachableError, "cannot be opened: No such device; is it unplugged"),
        (REGION_INFO, errno.ENODEV, UnreachableError, "cannot be opened: No such device"),
    ],
)
def test_a_device_that_cannot_be_opened_says_why_and_leaves_no_descriptor(
    pci: FakePci, kernel: FakeVfio, what: str | int, code: int, error: type[VtpmManagerError], text: str
) -> None:
    pci.plug()
    kernel.errors[what] = code
    with pytest.raises(error, match=text):
        VfioDevice(ADDRESS)
    assert not any(is_open(fd) for fd in kernel.opened)


def test_a_group_with_other_devices_is_refused_with_the_remedy(pci: FakePci, kernel: FakeVfio) -> None:
    pci.plug()
    kernel.viable = False
    with pytest.raises(ConfigError, match=rf"the IOMMU group of {ADDRESS} has other devices; .* root port of its own"):
        VfioDevice(ADDRESS)
    assert len(kernel.opened) == 2 and not any(is_open(fd) for fd in kernel.opened)


# -- channel addresses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "argument"),
    [
        ("unix:/run/vtpm/web.sock", Kind.UNIX, "/run/vtpm/web.sock"),
        ("unix:/with:colon", Kind.UNIX, "/with:colon"),
        ("ivshmem", Kind.IVSHMEM, ""),
        ("ivshmem:0000:05:00.0", Kind.IVSHMEM, "0000:05:00.0"),
        ("ivshmem:abcd:ef:1f.7", Kind.IVSHMEM, "abcd:ef:1f.7"),
        ("virtio-serial:org.vtpm.tpm", Kind.VIRTIO_SERIAL, "org.vtpm.tpm"),
        ("virtio-serial:A_b-c.9", Kind.VIRTIO_SERIAL, "A_b-c.9"),
        ("virtio-serial:" + "x" * 64, Kind.VIRTIO_SERIAL, "x" * 64),
    ],
)
def test_a_channel_is_a_carrier_and_its_argument_and_is_written_as_it_was_read(
    text: str, kind: Kind, argument: str
) -> None:
    assert address.parse(text) == Address(kind, argument)
    assert str(address.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unix",
        "unix:",
        "unix:relative/path",
        "UNIX:/x",
        "/run/vtpm/web.sock",
        "tcp:127.0.0.1:1",
        "ivshmem:05:00.0",
        "ivshmem:0000:05:00.8",
        "ivshmem:0000:05:00.0\n",
        "ivshmem:0000:0G:00.0",
        "ivshmem:../../../etc",
        "virtio-serial",
        "virtio-serial:",
        "virtio-serial:a/b",
        "virtio-serial:a b",
        "virtio-serial:" + "x" * 65,
        "xen:1/2",
    ],
)
def test_anything_else_is_refused_with_the_grammar(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        address.parse(text)
    assert str(refused.value).startswith(f"{text!r} is no channel: use {address.GRAMMAR}")
