"""What ``vtpmctl VERB --help`` adds for verbs about groups of tenants and credentials. Data only."""

from __future__ import annotations

TENANTS = {
    "group": """\
A group is a tenant's vTPMs: they have their own EK CA, and their own authority says who
operates them. 'add' takes FILE.json of 'authority enroll --group', signed by the
authority of the manager; files behind it are enrolments by the group's authority. A
newer statement may change the hierarchy while the group has no vTPMs; the authority never
changes. 'remove NAME' is refused while the group has vTPMs: only its own operators may
destroy them. 'list' is for anybody. 'add' and 'remove' are for admins.

examples:
  vtpmctl group add acme.json bob.json
  vtpmctl group list
  vtpmctl group remove acme
""",
    "certify": """\
The guest keeps its AK at a persistent handle (tpm2_evictcontrol). The manager reads the
key from the vTPM itself, makes sure that it is an AK (restricted, fixedTPM, sign), and
issues a credential, a file of JSON for whoever relies on the AK:

  sk           signed by the vTPM's SK, a key of the hardware TPM that the authority has
               certified; says nothing of the host
  ak-vak       evidence of the platform's AK over the AK; names the platform
  ak-vek       the same over the vTPM's EK; the AK is then asked for as with a real TPM
  independent  prints a request for an outside CA; --response FILE.pem is its answer

After a move to another host ask again, except for independent.

examples:
  vtpmctl certify web1 --ak 0x81010002 --out web1.json
  vtpmctl certify web1 --ak 0x81010002 --response ak.pem --out web1.json
""",
    "credential": """\
--help behind the action explains it.
""",
}
