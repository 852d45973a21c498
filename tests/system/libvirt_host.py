"""A real libvirtd of a simulated host: its own configuration, state and sockets, in a mount namespace of its own."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from image.host import machine
from image.host.agent import Agent
from image.host.process import Process
from manager_vm.errors import HostError
from tests.integration.harness import until

_PATIENCE = 20.0  # seconds for libvirtd to answer
_PLACES = ("/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt")
# Debian's libvirt wants a user of that name to exist, whatever the configuration says
_START = """
set -e
mount -t tmpfs tmpfs /run
mkdir -m 755 /run/libvirt /run/vtpm-qemu
mount --bind {here}/shims /run/vtpm-qemu
cp /etc/passwd /etc/group {here}
echo libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin >>{here}/passwd
echo libvirt-qemu:x:64055: >>{here}/group
mount --bind {here}/passwd /etc/passwd
mount --bind {here}/group /etc/group
for place in {places}; do
  mkdir -p $place {here}$place
  mount --bind {here}$place $place
done
cp {here}/*.conf /etc/libvirt
exec libvirtd --pid-file {here}/pid
"""
_LIBVIRTD = """
unix_sock_dir = "{here}/sockets"
unix_sock_rw_perms = "0700"
auth_unix_ro = "none"
auth_unix_rw = "none"
host_uuid = "{uuid}"
log_outputs = "2:stderr"
"""
_QEMU = """
security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""
_DOMAIN = """
<domain type='qemu'>
  <name>{name}</name>
  <uuid>{vm}</uuid>
  <memory unit='MiB'>512</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='{machine}'>hvm</type>
    <kernel>{image}/vmlinuz</kernel>
    <initrd>{image}/initrd.img</initrd>
    <cmdline>{cmdline}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>{cpu}</model></cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='{image}/root.img'/>
      <target dev='vda' bus='virtio'/>
      <readonly/>
      <shareable/>
      <serial>vm-root</serial>
    </disk>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <memballoon model='none'/>
{tpm}
  </devices>
</domain>
"""


class Libvirt:
    """One host's libvirtd, below ``here``."""

    def __init__(self, here: Path) -> None:
        self.here = here
        (here / "sockets").mkdir(parents=True)
        (here / "shims").mkdir()  # /run/vtpm-qemu of this host
        (here / "libvirtd.conf").write_text(_LIBVIRTD.format(here=here, uuid=uuid.uuid4()))
        (here / "qemu.conf").write_text(_QEMU)
        start = _START.format(here=here, places=" ".join(_PLACES))
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", start]
        self._process = Process("libvirtd", argv, here / "libvirtd.log")
        self.uri = f"qemu+unix:///system?socket={here}/sockets/libvirt-sock"
        until(self._answers, _PATIENCE, f"libvirtd answers; see {here}/libvirtd.log")

    def virsh(self, *words: str) -> str:
        """What virsh says; HostError with its complaint if it fails."""
        done = subprocess.run(["virsh", "-q", "-c", self.uri, *words], capture_output=True, text=True)
        if done.returncode:
            raise HostError(done.stderr.strip())
        return done.stdout

    def domains(self) -> list[str]:
        """Names of all that run."""
        return self.virsh("list", "--name").split()

    def close(self) -> None:
        """No domain is left, nor is libvirtd."""
        try:
            for name in self.domains():
                self.virsh("destroy", name)
        finally:
            self._process.close()

    def _answers(self) -> bool:
        self._process.check()
        try:
            return bool(self.virsh("version"))
        except HostError:
            return False


class Domain(Agent):
    """A domain's guest agent, which libvirt has: asked through virsh."""

    def __init__(self, name: str, host: Libvirt) -> None:
        super().__init__(name, Path())
        self._host = host

    def _synchronise(self, timeout: float) -> None:
        self._call("guest-ping", timeout)

    def _ensure(self, deadline: float) -> None:
        pass

    def _call(self, verb: str, deadline: float, **arguments: Any) -> Any:
        said = json.dumps({"execute": verb, **({"arguments": arguments} if arguments else {})})
        return json.loads(self._host.virsh("qemu-agent-command", "--timeout", "20", self._name, said))["return"]


def domain(name: str, vm: str, image: Path, tpm: str) -> str:
    """The XML of a domain that boots the guest's image. ``tpm``: its TPM device, as ``vtpmctl`` prints it."""
    cmdline = (image / "cmdline").read_text().strip()
    cpu = machine.cpu("tcg").removesuffix("-v1")
    kind = machine.MACHINE.split(",")[0]
    return _DOMAIN.format(name=name, vm=vm, machine=kind, image=image, cmdline=cmdline, cpu=cpu, tpm=tpm)


@contextmanager
def libvirt(here: Path) -> Iterator[Libvirt]:
    """One that is ended at the end."""
    with closing(Libvirt(here)) as found:
        yield found
