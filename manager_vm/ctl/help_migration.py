"""What ``vtpmctl VERB --help`` adds for the verbs about moves. Data only."""

from __future__ import annotations

DETAILS = {
    "migrate": """\
PEER is the other manager: HOST:PORT where it listens ('migration' in its status), or the
directory or socket of one on this machine. The order names the vTPM, its generation and
both platforms, and is signed by the authority of the vTPM's group: --order FILE, made by
'authority order'; else it is made now with --authority DIR, or with the authority beside
the manager (dev, simulated hosts). For HOST:PORT without --order name the other side's
platform with --platform.

Both managers show each other by their hardware TPMs that they run approved images on the
platforms that the order names; only then the state goes, encrypted. A running vTPM keeps
PCRs, sessions, loaded objects and its guest's last command; its guest waits meanwhile.
Then the guest has to find it: attach it at the destination to a channel of the guest; a
front end that was given CHANNEL,CHANNEL goes to the second by itself. --dry-run ends
before the vTPM is touched.

--with-guest moves the guest's VM too: its memory while it runs, then it stands still, its
vTPM moves, and the other host attaches the vTPM for the VM that has come, whose UUID the
manager there compares with the vTPM's ('bind'). For the hosts of this machine, a channel
over virtio-serial, and -m and PEER their directories. If it fails the guest runs on here
with its vTPM (which an order for the way back, made beforehand, may fetch; with --order
there is none); or the text says that it stands still: see 'resume-guest'.

Exit codes: 20 it stays, the text says why; 21 the same, and it is the destination that
refused; 22 the move had begun and was given up, it goes on here; 23 it was given up for
the destination, which has not confirmed it: it is asked again until it does, and
'migrations' shows it. --json names the cause apart.

examples:
  vtpmctl -m A migrate web1 --to B                       two dev managers in one directory
  vtpmctl -m HOST1 migrate web1 --to HOST2 --with-guest
  vtpmctl -m /run/vtpm migrate web1 --to 10.0.0.7:7654 --order order.json
""",
    "resume-guest": """\
After 'migrate --with-guest' has failed in a way that left the guest standing still: when
'migrations' says that its vTPM stayed here, or after 'migrate' at the other manager has
brought it back. The vTPM is attached for the VM; without it the guest does not run.

example: vtpmctl -m HOST1 resume-guest web1
""",
    "evacuate": """\
'migrate' for every vTPM, --parallel at once, with an order for each that is made now
(--authority, or the authority beside the manager). A line for each on standard error.
Exit code 1 if one stays.

example: vtpmctl -m A evacuate --to B --parallel 4
""",
    "migrations": """\
The newest 256 moves that are over, all that are not, and the last of each vTPM with each
peer. STATE at the source: offered
(nothing was given up), tombstone (given up; the destination has not confirmed), done,
aborted, restored (taken back: the destination has signed that it never will run it),
declared dead. At the destination: prepared (whole, but the source has not given it up),
committed, released. CAUSE: tampered, replayed, evidence, policy, order, version,
resume-failed, peer-lost, timeout, busy, fault. --json adds the receipts: the signed words
of both sides, the key of the other side's words, the transcript that they are about.
""",
    "receipt": """\
MOVE is the id of a move, as 'migrations --json' shows it, or a vTPM's name: its newest
move. The file has what both sides have sent to each other before keys were made, and the
newest signed word of each: nothing in it is secret. The newest 256 are kept.

example: vtpmctl -m /run/vtpm receipt web1 --out web1.receipt
""",
    "verify-receipt": """\
Asks nobody: trusted are the authority's public key and, for a vTPM of a tenant's group,
that of the group's authority. Proves line by line who ordered the move, that both
hardware TPMs quoted approved images and the keys of this very move, and what each side
signed with these keys. Exit code 6 if anything does not hold.

example: vtpmctl verify-receipt web1.receipt --authority authority.pub
""",
    "abort": """\
At the source before it has given the vTPM up, or at the destination before it has heard
that. The source goes on as soon as it has the destination's signed word. Exit code 13 if
it is too late.
""",
    "declare-dead": """\
For admins. The source has given the vTPM up, and the destination will never answer: its
disk or its hardware TPM is gone for good. The vTPM is taken back, and the destination's
platform is revoked here for ever. IF THE DESTINATION IS ALIVE AFTER ALL, THERE ARE TWO OF
IT: two copies with the same keys, and nobody can tell which is right. 'abort' at the
destination, where that still can be asked, is always better. Asks for the name to be
typed; --yes where there is no terminal.
""",
}
