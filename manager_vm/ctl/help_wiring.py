"""What ``vtpmctl VERB --help`` adds for the verbs of the host side. Data only."""

from __future__ import annotations

DETAILS = {
    "attach": """\
CHANNEL is what the manager sees: ivshmem:PCI-ADDRESS (ivshmem alone: the only such
device), virtio-serial:PORT-NAME, or unix:PATH. With `dev` it may be left out:
DIR/channels/NAME.sock. A vTPM has one channel, a channel one vTPM. Attaching the same
pair again changes nothing but the boot number. If naming the boot fails, a new wiring
is taken back.

--vm UUID: the VM at the channel's other end, as QEMU's query-uuid tells. A vTPM that is
bound to a VM (create --vm, bind) is served to that one only; exit code 16 for another, and
where none is named. One that is not bound is served as before.

--boot N: N above the newest applied number is a reset or power-on; the same number says
that this boot still runs.

examples:
  vtpmctl attach web1 ivshmem:0000:05:00.0 --boot 1
  vtpmctl attach web1 virtio-serial:web1 --boot 1 --vm 6f2c0a51-5a0e-4f0c-8f5b-0d7f0c6f2f11
  vtpmctl attach web1 ivshmem --print qemu          what to paste into the guest's QEMU command line
  vtpmctl attach web1 shim --print libvirt          what to paste into a domain's XML
""",
    "bind": """\
UUID is that of the VM in SMBIOS, QEMU's -uuid. The host names the VM when it attaches the
vTPM, and the manager refuses another one, here and wherever the vTPM moves. 'none' gives
the vTPM free. Refused (exit code 12) while a channel is wired to the vTPM, and (13) while it
moves. The host owns its VMs and could give two the same UUID: a binding is against mistakes
of hosts, and tells in the audit log whose vTPM it was.

examples:
  vtpmctl create web1 --vm 6f2c0a51-5a0e-4f0c-8f5b-0d7f0c6f2f11
  vtpmctl bind web1 none
""",
    "detach": """\
The command that executes is finished, the channel is closed, the vTPM goes on. After
the next 'attach' it serves when its running boot has been named.
""",
    "boot": """\
The host holds the VM at its reset until this has been acknowledged. A number is applied
once: a repeated report of the same number changes nothing, a lower one is refused (exit
code 13).
""",
    "network": """\
The card has exactly these addresses from then on, until the manager's VM is powered on
anew: the host says it again then. Other managers reach this one at any of them, for moves
only; 'status' shows at which port. Nobody is believed for an address: managers show each
other who they are by their hardware TPMs.

example:
  vtpmctl network 52:54:00:12:34:56 10.0.0.7/24 --gateway 10.0.0.1
""",
}
