"""What ``attach --print qemu`` says: the QEMU arguments that give a guest one end of a channel."""

from __future__ import annotations

from manager_vm.errors import ConfigError

_IVSHMEM = """# the guest's QEMU (the pair server listens at {socket}; `python -m image.host pair {socket}` runs one)
-M q35,kernel-irqchip=split
-device intel-iommu,intremap=on
-chardev socket,id=vtpm-pair,path={socket}
-device ivshmem-doorbell,chardev=vtpm-pair,vectors=2
# the guest's kernel command line: intel_iommu=on
# in the guest: python3 -m guest_frontend device ivshmem"""

_PORT = """# the guest's QEMU (the manager's QEMU listens at {socket} with its own port {port})
-device virtio-serial-pci
-chardev socket,id=vtpm-port,path={socket},reconnect=1
-device virtserialport,chardev=vtpm-port,name=org.vtpm.tpm
# in the guest: python3 -m guest_frontend device virtio-serial:org.vtpm.tpm"""


def qemu_arguments(name: str, channel: str) -> str:
    """Text to paste; ConfigError for a channel that no VM can have."""
    kind, _, argument = channel.partition(":")
    socket = f"/run/vtpm/{name}.sock"
    if kind == "ivshmem":
        return _IVSHMEM.format(socket=socket)
    if kind == "virtio-serial":
        return _PORT.format(socket=socket, port=argument or "NAME")
    raise ConfigError("QEMU can have ivshmem or virtio-serial:NAME; unix:PATH is for processes of this host")
