"""A VM as data, and QEMU's command line for it. Versioned machine type and named CPU: what is saved can be restored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

OVMF_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
OVMF_VARS = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
MACHINE = "pc-q35-7.2,kernel-irqchip=split"  # split: interrupt remapping needs it
# under emulation one that the kernel does not hold for vulnerable to Meltdown: changing page tables with every system
# call makes one 16 times slower there (measured)
_CPUS = {"tcg": "Opteron_G3-v1", "kvm": "Westmere-v1"}
AGENT_PORT = "org.qemu.guest_agent.0"
_PORTS_PER_FUNCTION_GROUP = 8


@dataclass(frozen=True, slots=True)
class VmSpec:
    """``image``: a directory of the image build. ``directory``: the VM's own (sockets, console log, variables).

    ``firmware``: OVMF and the UKI; otherwise QEMU loads kernel and initrd (quicker; nothing is measured). ``ports``:
    virtio-serial port -> socket at which its host side listens. ``slots``: empty PCIe root ports for hot-plug.
    ``hwtpm``: swtpm's control socket. ``tpm_model``: the device in front of it.
    ``hold_resets``: a reset or power-off stops the VM and waits for us.
    ``stub_arguments``: kernel arguments that systemd-stub takes from outside, and measures. ``uuid``: in SMBIOS, "" =
    none.
    """

    name: str
    image: Path
    directory: Path
    memory_mib: int = 512
    firmware: bool = False
    ports: tuple[tuple[str, Path], ...] = ()
    state_disk: Path | None = None
    slots: int = 1
    hwtpm: Path | None = None
    tpm_model: str = "tpm-crb"
    hold_resets: bool = False
    stub_arguments: str = ""
    uuid: str = ""

    @property
    def monitor(self) -> Path:
        return self.directory / "qmp.sock"

    @property
    def console(self) -> Path:
        return self.directory / "console.log"

    @property
    def agent(self) -> Path:
        return self.directory / "agent.sock"

    @property
    def variables(self) -> Path:
        return self.directory / "variables.fd"


def cpu(accelerator: str) -> str:
    """The processor model of all VMs under this accelerator (QEMU's ``-accel`` value)."""
    return _CPUS[accelerator.split(",")[0]]


def argv(spec: VmSpec, accelerator: str, *, incoming: str | None = None) -> list[str]:
    """QEMU's arguments; the processors wait for ``cont``. ``incoming``: where a saved or moved VM comes from."""
    arguments = ["qemu-system-x86_64", "-name", spec.name, "-M", MACHINE, "-accel", accelerator]
    arguments += ["-cpu", cpu(accelerator)]
    arguments += ["-smp", "1", "-m", str(spec.memory_mib), "-nodefaults", "-no-user-config", "-display", "none", "-S"]
    arguments += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    arguments += ["-qmp", f"unix:{spec.monitor},server=on,wait=off"]
    arguments += ["-chardev", f"file,id=console,path={spec.console},append=on", "-serial", "chardev:console"]
    arguments += ["-device", "intel-iommu,intremap=on"]
    arguments += ["-device", "vmgenid,guid=auto"]  # a VM restored from a file draws fresh randomness
    if spec.uuid:
        arguments += ["-uuid", spec.uuid]
    if spec.hold_resets:
        arguments += ["-action", "reboot=shutdown,shutdown=pause"]
    arguments += _boot(spec) + _disks(spec) + _ports(spec) + _slots(spec.slots)
    if spec.hwtpm is not None:
        arguments += ["-chardev", f"socket,id=hwtpm,path={spec.hwtpm}", "-tpmdev", "emulator,id=tpm0,chardev=hwtpm"]
        arguments += ["-device", f"{spec.tpm_model},tpmdev=tpm0"]
    if incoming is not None:
        arguments += ["-incoming", incoming]
    return arguments


def _boot(spec: VmSpec) -> list[str]:
    if not spec.firmware:
        files = ["-kernel", str(spec.image / "vmlinuz"), "-initrd", str(spec.image / "initrd.img")]
        return [*files, "-append", (spec.image / "cmdline").read_text()]
    code = f"if=pflash,format=raw,unit=0,readonly=on,file={OVMF_CODE}"
    variables = f"if=pflash,format=raw,unit=1,file={spec.variables}"
    arguments = ["-drive", code, "-drive", variables, "-kernel", str(spec.image / "uki.efi")]
    if spec.stub_arguments:
        arguments += ["-smbios", f"type=11,value=io.systemd.stub.kernel-cmdline-extra={spec.stub_arguments}"]
    return arguments


def _disks(spec: VmSpec) -> list[str]:
    root = f"if=none,id=root,format=raw,readonly=on,file.locking=off,file={spec.image / 'root.img'}"
    arguments = ["-drive", root, "-device", "virtio-blk-pci,drive=root,serial=vm-root"]
    if spec.state_disk is not None:
        arguments += ["-drive", f"if=none,id=state,format=raw,discard=unmap,file={spec.state_disk}"]
        arguments += ["-device", "virtio-blk-pci,drive=state,serial=vm-state"]
    return arguments


def _ports(spec: VmSpec) -> list[str]:
    arguments = ["-device", "virtio-serial-pci,id=serial,max_ports=31"]
    for number, (name, path) in enumerate(((AGENT_PORT, spec.agent), *spec.ports)):
        arguments += ["-chardev", f"socket,id=port{number},path={path},server=on,wait=off"]
        arguments += ["-device", f"virtserialport,bus=serial.0,chardev=port{number},name={name}"]
    return arguments


def _slots(count: int) -> list[str]:
    """Root ports, eight to a PCI device."""
    arguments = []
    for number in range(count):
        device, function = divmod(number, _PORTS_PER_FUNCTION_GROUP)
        place = f"bus=pcie.0,addr=0x{0x10 + device:x}.{function},multifunction=on"
        arguments += ["-device", f"pcie-root-port,id=slot{number},chassis={number + 1},{place}"]
    return arguments
