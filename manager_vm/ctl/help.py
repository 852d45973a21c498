"""What ``vtpmctl --help`` and ``vtpmctl VERB --help`` say. Data only."""

from __future__ import annotations

DESCRIPTION = "Drive a vTPM manager: the manager VM of a host, or `python -m manager_vm dev DIR`."

EPILOG = """\
-m names the manager: a directory with the sockets admin.sock and host.sock (dev's DIR,
or the directory of a simulated host), an admin socket, or unix:PATH. Verbs marked [host
link] go to host.sock beside the admin socket: they are for the program that starts the
VMs, which alone knows which channel is whose and when a VM was reset. Verbs marked
[offline] ask no manager: they work on files of the machine where the authority's key is.

Verbs marked [signed] need the key of an operator whom the manager's authority has
enrolled, in a role that reaches as far: admin (everything), operator (create, bind, start,
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
  13 wrong state · 14 swtpm · 15 quarantined · 16 another VM's
  20 move · 21 refused · 22 aborted · 23 handover unconfirmed
  With --json an error is {"error": {"name": CLASS, "text": TEXT}} on standard output, of a move with "cause"
  (see 'migrations --help'); the text also goes to standard error.

examples:
  vtpmctl -m /run/vtpm create web1
  vtpmctl -m /run/vtpm attach web1 ivshmem:0000:05:00.0 --boot 1
  vtpmctl -m /run/vtpm list --json
"""

VERBS = {
    "status": "what the manager is and holds",
    "list": "all vTPMs: state, channel, boot number, whether a guest is live, why something is wrong",
    "create": "[signed] manufacture a vTPM: EKs (RSA-2048, P-256, P-384) and their certificates; it has no power yet",
    "bind": "[signed] say which VM a vTPM belongs to, by its UUID: it is served to no other; none: to any",
    "show": "one vTPM in full",
    "start": "[signed] resume a stopped vTPM where it was; with --power-on start it anew (PCRs zero)",
    "stop": "[signed] park a vTPM: PCRs, sessions and loaded objects are kept for 'start'",
    "attach": "[host link] wire a vTPM to a guest's channel and name the running boot of its VM",
    "detach": "[host link] take a vTPM off its channel",
    "network": "[host link] give a network card of the manager VM its addresses: other managers reach it there",
    "boot": "[host link] report that the VM was reset or powered on: boot number N, each applied once",
    "destroy": "[signed] remove a vTPM and its keys for ever",
    "release": "[signed] lead a vTPM out of quarantine: checked again, or at a loss that you accept",
    "info": "what the running vTPM says of itself: manufacturer, lockout counter, PCR banks",
    "ek-cert": "an EK certificate, or the CA's, as PEM",
    "quote": "[signed] evidence that a vTPM is on this platform, which runs an approved image, for a verifier's nonce",
    "verify": "[offline] verify evidence: of 'quote' here, or of 'python -m guest_frontend quote' in a guest",
    "migrate": "[signed] move a vTPM to another manager, by an order of its group's authority",
    "resume-guest": "[host link] let a guest run on that a failed move has left standing still",
    "evacuate": "[signed] move all vTPMs to another manager",
    "migrations": "[signed] moves: how far they are, how they ended, receipts",
    "receipt": "[signed] what proves a move to others: order, both platforms' evidence, both sides' signed words",
    "verify-receipt": "[offline] verify a receipt of 'receipt'",
    "standing": "[signed] between which platforms a VM that its hypervisor moves takes its vTPM along: add, list",
    "snapshots": "[signed] earlier states of a vTPM that are kept for saved images of its VM: how many, which",
    "revert": "[signed] let a VM come back with an older saved image: its vTPM goes back, once; a rollback",
    "relocate": "[host link] move the whole manager to another host, with its VM; take one; come back",
    "abort": "[signed] give up a move that has not come to its point of no return",
    "declare-dead": "[signed] take a vTPM back from a destination that will never answer",
    "authority": "[offline] sign what managers must know: which images may unseal, who operates, which platforms",
    "key": "[offline] make a key, for an operator or for recovery",
    "provision": "tell a new manager its authority and first operators: once, by whoever comes first",
    "approve": "[signed] let an image unseal the root key from its next boot on: an approval of the authority",
    "upgrade": "[signed] 'approve', and what to do next for an upgrade in place",
    "revoke": "[signed] forbid images to unseal, for ever: a revocation of the authority, which the TPM enforces",
    "approvals": "which images may unseal the root key there, and which not any more",
    "operator": "[signed] add or remove an operator by a statement of the authority, or list them",
    "group": "[signed] take or give up a tenant's group of vTPMs, or list them",
    "platform": "[signed] enrol the manager's hardware TPM with the authority: evidence, activate, install; show",
    "certify": "[signed] have an AK of a vTPM vouched for, by the hierarchy of its group",
    "credential": "[offline] what a credential of 'certify' proves",
    "recovery": "to whom keys are wrapped for recovery, what was recovered: show; [signed] set, off",
    "recover": "bring a manager whose hardware TPM is lost to this one: recovery key, order of the authority",
    "audit": "[signed] the manager's audit log: shown, followed, verified; `audit verify FILE` needs no manager",
    "doctor": "what this machine has and lacks",
    "completion": "print shell completion: source <(vtpmctl completion bash)",
    "names": "the names of all vTPMs, one a line",
}
