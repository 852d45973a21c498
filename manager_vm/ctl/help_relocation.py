"""What ``vtpmctl relocate --help`` adds. Data only."""

from __future__ import annotations

DETAILS = {
    "relocate": """\
Moves the whole manager with all its vTPMs to a platform whose manager has none (the
receiver; it ends with the move). Asked of the programs that run the VMs of both hosts
(python -m image.host). METHOD:

  precopy   memory and disk move while vTPMs serve; they wait for the last of it only
  suspend   memory goes into an encrypted file that moves with the disk
  stop      vTPMs are parked, the disk moves, the manager boots at the other host
  postcopy  is refused: a link that breaks in it loses the only memory of all vTPMs

The order names manager, platforms and how often it has moved; the authority of the
manager signs it: --order FILE ('authority relocate'), else it is made now with
--authority DIR or the authority beside the manager. Both platforms are attested before a
byte goes; memory and disk go through a tunnel whose key both managers agreed on.

Until the vTPMs stop a failure changes nothing. Behind that the destination's hardware
TPM decides who the manager is: one that was left behind serves nothing until that TPM
has certified that it is not there ('relocate --abort' asks), and ends when it is.
A guest that stays behind has no TPM until it follows. At a receiver --abort gives up the
place that it keeps.

examples:
  vtpmctl -m /srv/b relocate --receive 10.0.0.7:7412
  vtpmctl -m /srv/a relocate --to 10.0.0.7:7412 --receiver 10.77.0.2:7411 --method precopy --order order.json
  vtpmctl -m /srv/a relocate --to /srv/b --method precopy        two hosts of one machine
""",
}
