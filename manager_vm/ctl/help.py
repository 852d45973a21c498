"""What ``vtpmctl --help`` and ``vtpmctl VERB --help`` say. Data only."""

from __future__ import annotations

from manager_vm.ctl import help_recovery

DESCRIPTION = "Drive a vTPM manager: the manager VM of a host, or `python -m manager_vm dev DIR`."

EPILOG = """\
-m names the manager: a directory with the sockets admin.sock and host.sock (dev's DIR,
or the directory of a simulated host), an admin socket, or unix:PATH. Verbs marked [host
link] go to host.sock beside the admin socket: they are for the program that starts the
VMs, which alone knows which channel is whose and when a VM was reset. Verbs marked
[offline] ask no manager: they work on files of the machine where the authority's key is.

Verbs marked [signed] need the key of an operator whom the manager's authority has
enrolled, in a role that reaches as far: admin (everything), operator (create, start,
stop, destroy, reading), auditor (reading, audit). The key is the file of --key, else of
VTPM_OPERATOR_KEY, else operator.key in DIR/authority or DIR/../authority (simulated
hosts and dev). The manager gives a challenge, the key signs challenge, verb and
arguments; such a request holds once, for a minute, at that manager only.

environment:
  VTPM_MANAGER        the manager when -m is not given
  VTPM_OPERATOR_KEY   the operator's key when --key is not given

exit codes:
  0 done · 1 other · 2 usage · 3 configuration · 4 manager unreachable · 5 protocol · 6 trust
  7 hardware TPM · 8 state disk · 9 host program · 10 vTPM · 11 unknown vTPM · 12 busy or name in use
  13 wrong state · 14 swtpm · 15 quarantined · 20 move · 21 refused · 22 aborted · 23 handover unconfirmed
  With --json an error is {"error": {"name": CLASS, "text": TEXT}} on standard output; the text also goes to
  standard error.

examples:
  vtpmctl -m /run/vtpm create web1
  vtpmctl -m /run/vtpm attach web1 ivshmem:0000:05:00.0 --boot 1
  vtpmctl -m /run/vtpm list --json
"""

VERBS = {
    "status": "what the manager is and holds",
    "list": "all vTPMs: state, channel, boot number, whether a guest is live, why something is wrong",
    "create": "[signed] manufacture a vTPM: EKs (RSA-2048, P-256, P-384) and their certificates; it has no power yet",
    "show": "one vTPM in full",
    "start": "[signed] resume a stopped vTPM where it was; with --power-on start it anew (PCRs zero)",
    "stop": "[signed] park a vTPM: PCRs, sessions and loaded objects are kept for 'start'",
    "attach": "[host link] wire a vTPM to a guest's channel and name the running boot of its VM",
    "detach": "[host link] take a vTPM off its channel",
    "boot": "[host link] report that the VM was reset or powered on: boot number N, each applied once",
    "destroy": "[signed] remove a vTPM and its keys for ever",
    "release": "[signed] lead a vTPM out of quarantine: checked again, or at a loss that you accept",
    "info": "what the running vTPM says of itself: manufacturer, lockout counter, PCR banks",
    "ek-cert": "an EK certificate, or the CA's, as PEM",
    "authority": "[offline] sign what managers must know: which images may unseal, who operates, which platforms",
    "key": "[offline] make a key, for an operator or for recovery",
    "provision": "tell a new manager its authority and first operators: once, by whoever comes first",
    "approve": "[signed] let an image unseal the root key from its next boot on: an approval of the authority",
    "upgrade": "[signed] 'approve', and what to do next for an upgrade in place",
    "revoke": "[signed] forbid images to unseal, for ever: a revocation of the authority, which the TPM enforces",
    "approvals": "which images may unseal the root key there, and which not any more",
    "operator": "[signed] add or remove an operator by a statement of the authority, or list them",
    "platform": "[signed] enrol the manager's hardware TPM with the authority: evidence, activate, install; show",
    "recovery": "to whom keys are wrapped for recovery, what was recovered: show; [signed] set, off",
    "recover": "bring a manager whose hardware TPM is lost to this one: recovery key, order of the authority",
    "audit": "[signed] the manager's audit log: shown, followed, verified; `audit verify FILE` needs no manager",
    "doctor": "what this machine has and lacks",
    "completion": "print shell completion: source <(vtpmctl completion bash)",
    "names": "the names of all vTPMs, one a line",
}

DETAILS = {
    "status": """\
Version, start time, number of vTPMs in each state, memory of the manager's process, and
warnings: what the manager found wrong with this machine when it started, for instance a
libtpms known to be vulnerable.
""",
    "list": """\
Columns: NAME; STATE (off, running, parked, failed, quarantined); CHANNEL, "-" while
detached; BOOT, the newest boot number applied; GENERATION; LIVE, whether a front end
was heard within 3.5 s; REASON, why a vTPM failed or is quarantined.
""",
    "create": """\
A name has 1 to 63 letters, digits, '.', '_' or '-', and is in use once. The new vTPM is
off: 'attach' with a boot number powers it on. An interrupted create leaves nothing
behind.

example: vtpmctl create web1
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
    "attach": """\
CHANNEL is what the manager sees: ivshmem:PCI-ADDRESS (ivshmem alone: the only such
device), virtio-serial:PORT-NAME, or unix:PATH. With `dev` it may be left out:
DIR/channels/NAME.sock. A vTPM has one channel, a channel one vTPM. Attaching the same
pair again changes nothing but the boot number. If naming the boot fails, a new wiring
is taken back.

--boot N: N above the newest applied number is a reset or power-on; the same number says
that this boot still runs.

examples:
  vtpmctl attach web1 ivshmem:0000:05:00.0 --boot 1
  vtpmctl attach web1 ivshmem --print qemu          what to paste into the guest's QEMU command line
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
examples:
  vtpmctl ek-cert web1 --key ecc-p256 | openssl x509 -noout -text
  vtpmctl ek-cert web1 --ca --out ca.pem && vtpmctl ek-cert web1 --out ek.pem
  openssl verify -CAfile ca.pem ek.pem
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

examples:
  vtpmctl --key alice.key operator add bob.json
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
    **help_recovery.DETAILS,
}
