"""What ``vtpmctl VERB --help`` adds for verbs about groups of tenants and credentials. Data only."""

from __future__ import annotations

from manager_vm.ctl import help_following, help_migration, help_recovery, help_relocation, help_wiring

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

DETAILS = (
    help_migration.DETAILS
    | help_relocation.DETAILS
    | help_following.DETAILS
    | help_wiring.DETAILS
    | help_recovery.DETAILS
    | TENANTS
    | {
        "status": """\
Version, start time, number of vTPMs in each state, memory of the manager's process, and
warnings: what the manager found wrong with this machine when it started, for instance a
libtpms known to be vulnerable.
""",
        "list": """\
Columns: NAME; GROUP; STATE (off, running, parked, failed, quarantined); CHANNEL, "-" while
detached; BOOT, the newest boot number applied; GENERATION; LIVE, whether a front end
was heard within 3.5 s; REASON, why a vTPM failed or is quarantined.
""",
        "create": """\
A name has 1 to 63 letters, digits, '.', '_' or '-', and is in use once. The new vTPM is
off: 'attach' with a boot number powers it on. An interrupted create leaves nothing
behind.

--group NAME: a tenant's vTPM. Its EK certificates are issued by that group's CA, and
only operators whom the group's authority has enrolled create, start and destroy it; an
admin of the platform may only stop it. Without --group it is in the group 'default',
which is the manager's own. A vTPM never changes its group.

--vm UUID: it is served to the VM with this UUID only; see 'bind'.

examples:
  vtpmctl create web1
  vtpmctl --key bob.key create web2 --group acme
""",
        "show": """\
Besides the columns of 'list': uuid; open, whether the manager holds the channel open;
boot_named, whether the host side has named the running boot since the manager started
(before that no command is served); last_seq; uid and pid of its swtpm; the TPM Names of
its EKs.
""",
        "start": """\
Without --power-on: continues a vTPM that 'stop' has parked; PCRs, sessions and loaded
objects are as they were. With --power-on: _TPM_Init and Startup(CLEAR), PCRs are zero;
refused while a guest is live. It counts as a new boot, and the vTPM serves only when
the host side has named it ('boot'), so a guest that still runs does not find zero PCRs.
""",
        "stop": """\
The command that executes is finished, then the state is read, sealed and synced, then
swtpm ends. It never costs a dictionary-attack strike. Guests' commands wait meanwhile,
and fail after about 6 s.
""",
        "destroy": """\
Refused while the vTPM is attached. Its keys go with the commit: no older copy of the
state disk opens them again, unless the anchor is copied back with it. Asks for the name
to be typed; --yes where there is no terminal.
""",
        "release": """\
For admins. What the vTPM needs to go on is verified again, for instance after a copy of
the damaged file was put back: if it is whole the vTPM is what it was before (off, parked,
failed). Else nothing changes, unless you accept a loss:

--discard-run    what its guest stored since the last stop (or since it was created) is
                 lost: the vTPM falls back to its last anchored state. Counters and the
                 dictionary-attack lockout go back too: whoever relied on them must know.
--discard-state  everything is lost: what is left can only be destroyed.

It is 'failed' then, and a guest goes on after its next reset. The record keeps the time,
the loss and the reason of the quarantine for ever: 'show' has it as 'released', and so
has the audit log. Asks for the name to be typed; --yes where there is no terminal.

examples:
  vtpmctl release web1
  vtpmctl release web1 --discard-run --yes
""",
        "info": """\
Asked of the TPM itself by TPM2_GetCapability, between two commands of its guest.
""",
        "ek-cert": """\
Issued by the CA of the vTPM's group, one root for each group of each manager: two groups
have nothing in common in their certificates. The guest finds them in NV: 0x01C00002
(RSA-2048), 0x01C0000A (P-256), 0x01C00016 (P-384), the CA's at 0x01C00100.

examples:
  vtpmctl ek-cert web1 --key ecc-p256 | openssl x509 -noout -text
  vtpmctl ek-cert web1 --ca --out ca.pem && vtpmctl ek-cert web1 --out ek.pem
  openssl verify -CAfile ca.pem ek.pem
  vtpmctl ek-cert web1 --chain --out chain.pem
""",
        "quote": """\
About the vTPM as such: its EK's certificate, and the signatures of its SK and of the
hardware TPM over EK and nonce. What the guest has measured is in evidence that the guest
itself asks for: python -m guest_frontend quote. For every operator; at most 4 at once and
one more each 5 s, for each manager.

example: vtpmctl quote web1 --nonce 5e1f... --out web1.json
""",
        "verify": """\
Asks nobody: all that is trusted is the authority's public key, and what you bring along.
Prints what is proven line by line; the first thing that is not is in a line FAILED, and
the exit code is 6. With --json: verified, proven (lines), not_proven.

--expect pcrs.json  the image that must have booted, from the image build or from
                    python3 -m image.measure IMAGE --json. Without it any image is good that
                    the authority approved, revoked since or not.
--ek-ca ca.pem      who must have certified the vTPM's EK ('ek-cert NAME --ca')

A bundle without a platform part (guest_frontend quote --third-party) proves the vTPM's
quote, and that a platform of the authority vouches for it, but not which or what it runs.

example: vtpmctl verify web1.json --authority authority.pub --nonce 5e1f...
""",
        "authority": """\
The authority is a signature key (ECDSA, P-256) in a directory that only its owner can
open. Keep that directory off the hosts and copy it: who has its key decides which images
managers unseal for, and nobody can replace it. Files that it signs are public, and
worthless if changed: they may travel any way. A directory named authority that `dev` or a
simulated host has made can be used as well.

--help behind an action explains it. Order of things:
  vtpmctl authority init /media/stick/authority
  vtpmctl authority approve /media/stick/authority --image build/image/manager
  vtpmctl key new alice.key
  vtpmctl authority enroll /media/stick/authority --operator alice --key alice.key.pub --role admin
""",
        "key": """\
--help behind an action explains it.

example: vtpmctl key new alice.key
""",
        "provision": """\
A manager that has no authority serves 'status' and this. It trusts the first authority
that it is told, and says so in its log; after that only enrolled operators change
anything, among them who is enrolled. It makes a root key, seals it to its hardware TPM so
that only images unseal it which this authority approves, sets the TPM's authorizations,
and anchors the first manifest there. The approval must be that of the image which runs.
A TPM that belongs to another manager is refused. What was cut off is continued by asking
again. `dev` and the simulated host do all this by themselves, with an authority in the
directory named authority. --recovery: see 'recovery'.

example: vtpmctl -m /run/vtpm provision authority.pub alice.json --approval 0.json
""",
        "approve": """\
Nothing is sealed anew: the root key was sealed under what the authority approves. An
approval that is revoked here already is refused: that would be a downgrade.

example: vtpmctl -m /run/vtpm approve approvals/3.json
""",
        "upgrade": """\
Upgrade in place: have the authority approve the new image, hand the approval over with
this verb, power the manager VM down (every vTPM is parked) and start it from the new
image: all vTPMs resume, with PCRs and sessions. Then 'revoke' the old one. Guests' commands
wait meanwhile, and fail after about 6 s (programs on tpm2-tss: 30 s).

example: vtpmctl -m /run/vtpm upgrade approvals/3.json
""",
        "revoke": """\
Sets bits in an NV index of the hardware TPM that nothing clears: an image whose approval
is revoked cannot unseal, whatever lies on its disk. Refused if no approval would be left:
the manager could not start again. --force insists.

example: vtpmctl -m /run/vtpm revoke revocations/0.json
""",
        "approvals": """\
Columns: NUMBER, the approval's bit in the TPM; STATE, approved or revoked; IMAGE, what
the authority calls it ("-": revoked, and not known here).
""",
        "operator": """\
FILE.json is signed by the authority: an enrolment (add) or a removal (remove). A name
has one key: an enrolment with a higher serial replaces the one before. A removed key
never comes back. The last admin can only be replaced. 'list' is for every operator.

--group NAME: FILE.json is signed by that group's authority, and the request by an admin
of the group or of the platform, who only hands it in.

examples:
  vtpmctl --key alice.key operator add bob.json
  vtpmctl operator add carol.json --group acme
  vtpmctl operator list
""",
        "platform": """\
The authority enrols a platform once: it proves by its hardware TPM which one it is, and
gets certificates for signing keys, one for each vTPM to come. Two files go to the
authority, two come back; anybody may carry them.

  platform evidence --out FILE   the EK's certificate, the public AK; makes signing keys
  platform activate CHALLENGE --out FILE     opens the authority's challenge in the TPM, and
                                 has the AK certify the new signing keys
  platform install ENROLMENT     keeps the authority's statement and certificates
  platform show                  name, AK, signing keys: free, assigned, not certified

All but 'show' are for admins. Each step can be repeated; keys that were never certified
are offered again. A vTPM gets a signing key when it is created; 'destroy' removes it,
and no other vTPM ever gets it. When none is free, 'evidence --more N' makes N more, and
the same steps follow. `dev` and the simulated host are enrolled when they start.

example:
  vtpmctl platform evidence --out evidence.json
  vtpmctl authority enroll DIR --platform rack7 --evidence evidence.json --vendor-ca vendor.pem --out challenge.json
  vtpmctl platform activate challenge.json --out answer.json
  vtpmctl authority enroll DIR --answer answer.json --out enrolment.json
  vtpmctl platform install enrolment.json
""",
        "audit": """\
For admins and auditors. One line an entry: number, time (the host's clock), event. A
changing request has an entry before it is performed (request) and one after it
(outcome); refused signed requests, boots, wiring, failures, quarantine, provisioning,
start and end of the manager have theirs. Each entry has the hash of the one before; the
newest hash is in the anchored manifest. Entries of the time since the last commit are
marked: a crash may leave them for anybody to change, and the entry 'manager started'
says how many of them were found.

--follow N shows entry N and all behind it, then waits for more; --verify fetches the
whole log and checks the chain up to the anchored head.

verify FILE checks a copy of audit.log, with audit.log.1 ... beside it, without a manager.
Whether the newest entries were cut off, only --head tells: the digest of an entry that
is known to be anchored, as --verify and `audit --json` print it. Exit code 6 if the
chain is broken.

examples:
  vtpmctl --key carol.key audit --last 50
  vtpmctl audit verify /mnt/backup/audit.log --head 5e8f...
""",
        "doctor": """\
Looks at programs, versions, devices and memory of this machine, and at the manager if
-m names one. Each finding is ok, warn or fail; warn and fail come with a remedy. Exit
code 1 if something fails.
""",
        "completion": """\
examples:
  source <(vtpmctl completion bash)                 also zsh
  vtpmctl completion fish | source
""",
    }
)
