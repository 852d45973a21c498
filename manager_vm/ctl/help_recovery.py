"""What ``vtpmctl recovery --help`` and ``vtpmctl recover --help`` say. Data only."""

from __future__ import annotations

DETAILS = {
    "recovery": """\
Optional. The authority names a recovery recipient, a key that is kept offline; from then
on each commit wraps the root key and its own store key to it, and puts that into the
manifest. When the hardware TPM dies or is cleared, 'recover' needs that key.

WHOEVER HOLDS THAT KEY CAN READ EVERY DISK of this manager from that time on, old copies
too: what was destroyed since is erased only for everybody else. He also learns the root
key, which 'off' and another recipient do not change: with the hardware TPM at hand he
could go on reading.

  recovery set FILE.json   for admins; the authority's statement ('authority enroll --recovery').
                           One that is older than the newest known is refused, also after 'off'
  recovery off             for admins: nothing is wrapped from now on; 'set' takes the
                           authority's newest statement again
  recovery show            key id and serial of the recipient, whether it is active; what was
                           recovered (SRK's Name of the platform before, digest of the order,
                           time), which platforms are revoked since

example: vtpmctl recovery set authority/recovery/1.json
""",
    "recover": """\
For a manager that finds itself on a hardware TPM which is not its own and which nobody
owns, with a disk whose keys are wrapped to a recovery recipient. It serves 'status',
which says what the authority must order, and this verb. --key is the recovery key: it
stays on this machine, the manager gets the store key of its disk alone, wrapped to a key
of this start. Run it where you trust the way to the manager: who answers instead of it
gets the store key.

Everybody can make it: the order is what counts. Possession is taken of the TPM, a new
root key is sealed to it, every vTPM goes on one generation further. PCRs and sessions do
not come back: what ran or was stopped is 'failed' until its guest is reset. The old
platform is revoked. 'status', 'show' and 'recovery show' keep a mark for ever, for NOTHING
PROVES THAT THE DISK WAS THE NEWEST: operators who were removed, approvals, vTPMs that
were destroyed or moved away since it was copied are back, so look for them. Images that
the authority has revoked stay so. What was cut off is continued by asking again.

example:
  vtpmctl -m /run/vtpm status                          warnings; recovery: manager, from, to
  vtpmctl authority recover DIR --manager ID --from NAME --to NAME --reason 'board died'
  vtpmctl -m /run/vtpm recover --key recovery.key --order DIR/recovery/2.json
""",
}
