"""What ``vtpmctl standing --help`` and those of ``snapshots`` and ``revert`` add. Data only."""

from __future__ import annotations

DETAILS = {
    "standing": """\
A VM that its hypervisor moves by itself (QEMU, libvirt) takes its vTPM along by PULL: the
vTPM must belong to that VM ('create --vm', 'bind'), its guest be served by the QEMU shim,
and both managers have a standing order of the VM: 'add FILE.json' of 'authority
standing'. A newer one replaces it; one without platforms revokes it.

examples:
  vtpmctl authority standing authority --vm 0d2c... --platform rack1 rack2 --serial 1 --out web.json
  vtpmctl standing add web.json
  vtpmctl standing list
""",
    "snapshots": """\
A VM that its hypervisor saves (virsh save, savevm, a snapshot with memory) has a ticket in
its image, which names the state that its vTPM had. The image can be restored as long as
the VM has not gone on since; then the ticket is void. With --keep N the manager keeps the
newest N of those states, for 'revert'. 0, the default: none, and nobody can bring an
earlier state of this vTPM back; what was kept is erased. The image of the manager has an
upper limit (snapshots in its configuration, 0 = never), and evidence says how many are
kept. They stay behind when the vTPM moves, and are erased there. --keep is for admins.

examples:
  vtpmctl snapshots web1 --keep 3
  vtpmctl snapshots web1
  vtpmctl snapshots web1 --drop 51c0ffee...
""",
    "revert": """\
For admins: a rollback. The next VM that comes with the ticket of this snapshot (virsh
restore, loadvm, snapshot-revert) finds its vTPM as it was then, once; what the vTPM has
become since is lost, NV counters and the dictionary-attack lockout go back too. Until
then nothing changes; another 'revert' replaces this one. --now is for a VM whose disks
were brought back while it was off: the vTPM is parked as it was, at once; refused while a
guest uses it. The audit log has who permitted it and when it was used, and evidence says
for ever how often ('show': reverted). Asks for the name to be typed; --yes where there is
no terminal.

examples:
  vtpmctl revert web1 51c0ffee... && virsh snapshot-revert web1 before-upgrade
  vtpmctl revert web1 51c0ffee... --now --yes
""",
}
