"""A PCI device from user space: vfio-pci behind an IOMMU (Linux Documentation/driver-api/vfio.rst, linux/vfio.h)."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from pathlib import Path

from manager_vm.errors import BusyError, ConfigError, UnreachableError, VtpmManagerError

PCI_DEVICES = Path("/sys/bus/pci/devices")

_VFIO_BASE = 0x3B << 8 | 100  # _IO(';', 100 + n)
_SET_IOMMU, _GROUP_GET_STATUS, _GROUP_SET_CONTAINER = _VFIO_BASE + 2, _VFIO_BASE + 3, _VFIO_BASE + 4
_GROUP_GET_DEVICE_FD, _GET_REGION_INFO, _SET_IRQS = _VFIO_BASE + 6, _VFIO_BASE + 8, _VFIO_BASE + 10
_TYPE1_IOMMU = 1
_GROUP_VIABLE = 1
_CONFIG_REGION = 7
_MSIX_IRQ, _REQUEST_IRQ = 2, 4
_IRQ_EVENTFD_TRIGGER = 1 << 2 | 1 << 5
_REGION = struct.Struct("=IIIIQQ")  # argsz, flags, index, cap_offset, size, offset
_PCI_COMMAND = 4
_MEMORY_AND_BUS_MASTER = 0x6


def find(vendor: int, device: int) -> list[str]:
    """PCI addresses of all devices with these ids, in order; none where there is no PCI bus."""
    wanted = (f"0x{vendor:04x}", f"0x{device:04x}")
    try:
        paths = sorted(PCI_DEVICES.iterdir())
    except FileNotFoundError:
        return []
    return [path.name for path in paths if _ids(path) == wanted]


def _ids(path: Path) -> tuple[str, str] | None:
    """(vendor, device); None if it has just been unplugged."""
    try:
        return (path / "vendor").read_text().strip(), (path / "device").read_text().strip()
    except OSError:
        return None


class VfioDevice:
    """An opened device: regions, interrupts as eventfds. ``close`` frees it."""

    def __init__(self, address: str) -> None:
        group = _bind(address)
        self._container = self._group = self._device = -1
        try:
            self._container = os.open("/dev/vfio/vfio", os.O_RDWR | os.O_CLOEXEC)
            self._group = _open_group(group, address)
            fcntl.ioctl(self._group, _GROUP_SET_CONTAINER, struct.pack("=i", self._container))
            fcntl.ioctl(self._container, _SET_IOMMU, _TYPE1_IOMMU)
            # a mutable buffer makes ioctl() return the system call's result: the device's descriptor
            self._device = fcntl.ioctl(self._group, _GROUP_GET_DEVICE_FD, bytearray(address.encode() + b"\0"), True)
            self._enable_bus_master()
        except OSError as error:
            self.close()
            raise UnreachableError(
                f"the PCI device {address} cannot be opened: {error.strerror}; is it unplugged, or vfio not loaded?"
            ) from None
        except VtpmManagerError:
            self.close()
            raise

    def map(self, region: int, size: int) -> mmap.mmap:
        """Map the first ``size`` bytes of a BAR."""
        length, offset = self._region(region)
        if length < size:
            raise ConfigError(f"BAR {region} of the device has {length} bytes; {size} are needed")
        return mmap.mmap(self._device, size, offset=offset)

    def registers(self, region: int) -> tuple[int, int]:
        """(descriptor, offset) of a BAR for pread and pwrite."""
        return self._device, self._region(region)[1]

    def route_interrupts(self, events: list[int]) -> None:
        """MSI-X vector i signals eventfd ``events[i]``."""
        self._set_irqs(_MSIX_IRQ, events)

    def route_unplug(self, event: int) -> None:
        """The kernel asks for the device back (hot unplug): signals ``event``."""
        self._set_irqs(_REQUEST_IRQ, [event])

    def _set_irqs(self, index: int, events: list[int]) -> None:
        head = struct.pack("=IIIII", 20 + 4 * len(events), _IRQ_EVENTFD_TRIGGER, index, 0, len(events))
        fcntl.ioctl(self._device, _SET_IRQS, head + struct.pack(f"={len(events)}i", *events))

    def _region(self, index: int) -> tuple[int, int]:
        info = bytearray(_REGION.pack(_REGION.size, 0, index, 0, 0, 0))
        fcntl.ioctl(self._device, _GET_REGION_INFO, info)
        _, _, _, _, size, offset = _REGION.unpack(info)
        return size, offset

    def _enable_bus_master(self) -> None:
        """vfio leaves bus mastering off, and without it MSI-X never arrives (measured)."""
        _, offset = self._region(_CONFIG_REGION)
        (command,) = struct.unpack("<H", os.pread(self._device, 2, offset + _PCI_COMMAND))
        os.pwrite(self._device, struct.pack("<H", command | _MEMORY_AND_BUS_MASTER), offset + _PCI_COMMAND)

    def close(self) -> None:
        """Give the device back; idempotent."""
        for fd in (self._device, self._group, self._container):
            if fd >= 0:
                os.close(fd)
        self._device = self._group = self._container = -1


def _bind(address: str) -> Path:
    """Bind the device to vfio-pci if it is not; its IOMMU group's device node."""
    path = PCI_DEVICES / address
    if not path.exists():
        raise UnreachableError(f"there is no PCI device {address}; is it plugged in?")
    group = path / "iommu_group"
    if not group.exists():
        raise ConfigError(
            f"PCI device {address} has no IOMMU group: give the VM a vIOMMU (QEMU -device intel-iommu,intremap=on) "
            "and its kernel the argument intel_iommu=on"
        )
    driver = path / "driver"
    if not driver.exists() or driver.resolve().name != "vfio-pci":
        _rebind(path)
    return Path("/dev/vfio") / group.resolve().name


def _rebind(path: Path) -> None:
    try:
        (path / "driver_override").write_text("vfio-pci")
        if (path / "driver").exists():
            (path / "driver" / "unbind").write_text(path.name)
        (PCI_DEVICES.parent / "drivers_probe").write_text(path.name)
    except OSError as error:
        raise ConfigError(
            f"cannot give {path.name} to vfio-pci: {error.strerror}; modprobe vfio-pci, as root"
        ) from None
    if not (path / "driver").exists():
        raise ConfigError(f"no driver took {path.name}; modprobe vfio-pci")


def _open_group(node: Path, address: str) -> int:
    try:
        group = os.open(node, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise BusyError(f"PCI device {address} is open in another process; stop that one first") from None
        if error.errno == errno.ENOENT:
            raise UnreachableError(
                f"{node} is not there: {address} is just being plugged, or modprobe vfio-pci, as root"
            ) from None
        raise ConfigError(f"cannot open {node}: {error.strerror}; modprobe vfio-pci, as root") from None
    status = bytearray(struct.pack("=II", 8, 0))
    try:
        fcntl.ioctl(group, _GROUP_GET_STATUS, status)
    except OSError:
        os.close(group)
        raise
    if not struct.unpack("=II", status)[1] & _GROUP_VIABLE:
        os.close(group)
        raise ConfigError(f"the IOMMU group of {address} has other devices; give it a PCIe root port of its own")
    return group
