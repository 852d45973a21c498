"""The verbs of the host side: their arguments, and what ``attach --print`` says for a guest's QEMU or libvirt."""

from __future__ import annotations

import argparse

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


_SHIM = """# the guest's QEMU; on the host runs the shim, which attaches the vTPM and reports its VM's boots (QEMU.md):
#   vtpm-qemu.service, and {file} with the VM's UUID in it
-chardev socket,id=vtpm,path={socket}
-tpmdev emulator,id=vtpm,chardev=vtpm
-device tpm-crb,tpmdev=vtpm"""

# libvirt's domain XML format, "TPM device"; the external backend exists since 9.0
_LIBVIRT = """<!-- in <devices> of the domain; on each host where it may run: vtpm-qemu.service, the shim (QEMU.md), and
     {file} with the domain's <uuid> in it -->
<tpm model='tpm-crb'>
  <backend type='external'>
    <source type='unix' mode='connect' path='{socket}'/>
  </backend>
</tpm>"""


def libvirt_device(name: str, channel: str) -> str:
    """XML to paste; ConfigError for a channel that libvirt has no device for."""
    if channel.partition(":")[0] != "shim":
        raise ConfigError("libvirt has a TPM device for the shim: 'attach NAME shim --print libvirt'")
    return _LIBVIRT.format(**_shim_files(name))


def qemu_arguments(name: str, channel: str) -> str:
    """Text to paste; ConfigError for a channel that no VM can have."""
    kind, _, argument = channel.partition(":")
    socket = f"/run/vtpm/{name}.sock"
    if kind == "ivshmem":
        return _IVSHMEM.format(socket=socket)
    if kind == "virtio-serial":
        return _PORT.format(socket=socket, port=argument or "NAME")
    if kind == "shim":
        return _SHIM.format(**_shim_files(name))
    raise ConfigError("QEMU can have ivshmem, virtio-serial:NAME or shim; unix:PATH is for processes of this host")


def _shim_files(name: str) -> dict[str, str]:
    """Of one service for all guests of a host (vtpm-qemu.service)."""
    return {"socket": f"/run/vtpm-qemu/{name}.sock", "file": f"/run/vtpm-qemu/{name}.guest"}


def add_arguments(verbs: dict[str, argparse.ArgumentParser]) -> None:
    """That a vTPM is named stands with all others."""
    verbs["boot"].add_argument("number", type=int, metavar="N", help="the VM's boot number, growing by one per reset")
    network = verbs["network"]
    network.add_argument("mac", metavar="MAC", help="which card, by its MAC address")
    network.add_argument("addresses", nargs="+", metavar="ADDRESS/PREFIX", help="all that it has, as in 10.0.0.7/24")
    network.add_argument(
        "--gateway", default="", metavar="ADDRESS", help="where all else is reached (default: nowhere)"
    )
    attach = verbs["attach"]
    attach.add_argument(
        "channel", nargs="?", metavar="CHANNEL", help="ivshmem[:PCI-ADDRESS], virtio-serial:NAME, unix:PATH"
    )
    attach.add_argument("--boot", type=int, metavar="N", help="the running boot (default: the newest; power on if off)")
    attach.add_argument("--vm", metavar="UUID", help="UUID of the VM there: a vTPM that is bound to a VM needs it")
    text = "only print what to paste into the guest's QEMU command line, or libvirt's domain XML"
    attach.add_argument("--print", choices=["qemu", "libvirt"], help=text)
