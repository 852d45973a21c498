"""VMs for tests: each kind is booted once and saved; a test restores it in a third of a second."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from image import measure
from image.builder.image import make_uki
from image.builder.steps import Builder, Layout
from image.builder.tools import Tools
from image.host import demo, saved
from image.host.guest import Guest
from image.host.host import Host
from image.host.machine import VmSpec
from image.host.network import Switch
from image.host.saved import Saved
from image.host.vm import Vm
from image.host.wires import Carrier

ROOT = Path(__file__).resolve().parent.parent.parent
IMAGES = ROOT / "build" / "image"
_CONSOLE = 240.0  # seconds for a line on the console
_STORE = ROOT / "build" / "saved"

# what a first TPM command would otherwise read from the (slow, verified) root disk
_WARM_UP = """
modprobe tpm_vtpm_proxy
python3 -m guest_frontend --help
python3 -c 'import guest_frontend.device, manager_vm.vchan.ivshmem, manager_vm.vchan.virtio_serial'
for tool in getrandom pcrread pcrextend nvread nvdefine nvincrement createprimary; do tpm2_$tool --version; done
systemctl is-system-running --wait
"""


@contextmanager
def short_directory() -> Iterator[Path]:
    """A temporary directory whose path leaves room for the names of UNIX sockets."""
    path = Path(tempfile.mkdtemp(prefix="vtpm-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def saved_manager() -> Saved:
    """A manager that serves, is provisioned and has no vTPM yet. Booted once through OVMF and its UKI."""
    with short_directory() as directory, Host(directory, IMAGES, firmware=True) as host:
        spec = host.manager_spec(directory / "hwtpm")

        def make(target: Path) -> None:
            vm = host.start_manager()
            vm.agent.wait(60)
            saved.save(vm, target, host.authority)

        return saved.find(_STORE, spec, host.accelerator, make)


def saved_peer(first: Saved) -> Saved:
    """A second manager, with another hardware TPM, enrolled by the authority of the first: it lies and goes with it."""
    with short_directory() as directory, Host(directory, IMAGES, firmware=True) as host:
        spec = replace(host.manager_spec(directory / "hwtpm"), name="peer")

        def make(target: Path) -> None:
            shutil.copytree(first.directory / host.authority.name, host.authority)
            vm = host.start_manager()
            vm.agent.wait(60)
            saved.save(vm, target, host.authority)

        return saved.find(first.directory, spec, host.accelerator, make)


def saved_guest() -> Saved:
    """A guest that is up, without a TPM."""
    with short_directory() as directory, Host(directory, IMAGES) as host:
        spec = VmSpec("guest", IMAGES / "guest", directory, hold_resets=True)

        def make(target: Path) -> None:
            with Vm(spec, host.accelerator) as vm:
                vm.go()
                vm.agent.wait(240)
                vm.agent.run(_WARM_UP, 120)
                saved.save(vm, target)

        return saved.find(_STORE, spec, host.accelerator, make)


class Lab:
    """One host with a restored manager; guests are restored and wired on demand."""

    def __init__(self, host: Host, guest: Saved) -> None:
        self.host = host
        self._guest = guest

    @property
    def manager(self) -> Vm:
        assert self.host.manager is not None
        return self.host.manager

    def guest(self, name: str = "a", carrier: Carrier = Carrier.IVSHMEM, vm: str = "") -> Guest:
        """A guest with /dev/tpmrm0, its vTPM just created. ``vm``: its UUID, to which its vTPM is bound."""
        self.host.links.admin("create", name=name, vm=vm)
        saved = None if carrier is Carrier.SHIM else self._guest  # which was saved without a TPM
        guest = self.host.add_guest(name, carrier, saved, vm)
        if saved is None:
            guest.vm.agent.wait(_CONSOLE)
        demo.await_device(guest)
        return guest

    def vtpm(self, name: str = "a") -> dict[str, object]:
        """``show`` of a vTPM."""
        return dict(self.host.links.admin("show", name=name))

    def journal(self) -> str:
        """What the manager's daemon logged."""
        return self.manager.agent.check("journalctl -b --no-pager -u vtpm-manager")


class Rack:
    """Two hosts of one authority, each with its manager and hardware TPM, and a network between them."""

    def __init__(self, one: Lab, two: Lab, switch: Switch) -> None:
        self.a, self.b = one, two
        one.host.connect(switch, "10.77.0.1/24")
        two.host.connect(switch, "10.77.0.2/24")

    def platform(self, lab: Lab) -> str:
        """The name that the authority gave the host's platform."""
        return str(lab.host.links.admin("platform_show")["platform"])


@contextmanager
def rack(first: Saved, second: Saved, guest: Saved) -> Iterator[Rack]:
    """Both managers restored and connected."""
    with ExitStack() as stack:
        directory = stack.enter_context(short_directory())
        switch = Switch(directory / "switch")
        stack.callback(switch.close)
        labs = []
        for name, found in (("a", first), ("b", second)):
            host = stack.enter_context(Host(directory / name, IMAGES, firmware=True))
            host.start_manager(found)
            labs.append(Lab(host, guest))
        yield Rack(labs[0], labs[1], switch)


def console_says(vm: Vm, *texts: str) -> str:
    """Wait until one of ``texts`` stands on the console; all of it."""
    deadline = time.monotonic() + _CONSOLE
    while not any(text in (said := vm.spec.console.read_text(errors="replace")) for text in texts):
        assert time.monotonic() < deadline, said
        time.sleep(0.1)
    return said


def second_image(target: Path) -> Path:
    """Another build of the manager's image, beside the guest's: the same root, one more kernel argument."""
    first, second = IMAGES / "manager", target / "manager"
    second.mkdir(parents=True)
    (target / "guest").symlink_to(IMAGES / "guest")
    for name in ("vmlinuz", "initrd.img", "image.json"):
        shutil.copyfile(first / name, second / name)
    (second / "root.img").symlink_to(first / "root.img")
    (second / "cmdline").write_text((first / "cmdline").read_text().strip() + " vm.build=2")
    version = dict(measure.sections((first / "uki.efi").read_bytes()))[".uname"].decode()
    make_uki(Tools(Builder(Layout(ROOT))), "second image", second, version)
    (second / "pcrs.json").write_text(measure.report(second))
    return target


def children_of_ours() -> list[str]:
    """Command lines of all QEMU and swtpm processes that descend from this process."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if words[0].rsplit(b"/", 1)[-1] in (b"qemu-system-x86_64", b"swtpm") and _descends(parent):
            found.append(b" ".join(words).decode())
    return found


def _descends(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except FileNotFoundError:
            return False
    return False
