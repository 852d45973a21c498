"""What ``vtpmctl authority ACTION --help`` and ``vtpmctl key ACTION --help`` say. Data only."""

from __future__ import annotations

# what an operator with this role may ask for
ROLES = {
    "admin": "everything",
    "operator": "create, bind, start, stop, destroy; reading",
    "auditor": "reading; the audit log",
}

# what vouches for the AKs of a group's vTPMs (keys/HIERARCHIES.md)
HIERARCHIES = ("sk", "ak-vek", "ak-vak", "independent", "ek")

# verb -> its second word -> (a line, what --help adds)
ACTIONS = {
    "authority": {
        "init": (
            "make an authority: a directory with a new key",
            """\
DIR must be new, or empty and open to nobody else. It gets mode 0700 and holds

  authority.key    the private key (PEM, mode 0600, no passphrase: keep DIR on an encrypted
                   or removable disk)
  authority.pub    the public key, for managers and verifiers
  authority.pem    its certificate, under which signing keys of vTPMs are certified
  approvals/       N.json: approval number N
  revocations/     N.json, in the order in which they were made
  operators/       NAME.json: who is enrolled
  removals/        who was removed
  groups/          NAME.json: tenants' groups
  platforms/       NAME.json: who is enrolled
  challenges/      ID.json: to platforms that have not answered yet
  enrolments/      N.json: which signing keys were certified, and whose they are

Delete nothing in it: it is the record of what is used up. An existing authority is never
overwritten (exit code 3).

example: vtpmctl authority init /media/stick/authority
""",
        ),
        "approve": (
            "sign that a manager in this image may unseal its root key",
            """\
Binds the SHA-256 PCRs 4, 9, 11, 12 and 13 as they are when the image has booted. PCR 11
is taken before the manager caps it; after_cap is what quotes of a serving manager show.
--image DIR reads pcrs.json and image.json that './build.sh image' has left there, and
refuses them if uki.efi beside them is another one.

Each approval has a number of its own from 0 to 63, a bit in the revocation index of every
hardware TPM; it is never used again. The default is above all numbers used before, so that
'revoke --below' means all older images. After 64 approvals an authority can make no more.

Writes DIR/approvals/N.json.

examples:
  vtpmctl authority approve authority --image build/image/manager-production --name release-7
  /usr/bin/python3 -m image.measure build/image/manager --json > pcrs.json
  vtpmctl authority approve authority --pcrs pcrs.json --name 'release 7'
""",
        ),
        "revoke": (
            "sign that approvals are void",
            """\
Once a manager has taken it over, its hardware TPM refuses those images, for ever: a bit of
the revocation index is never cleared. A manager that runs goes on until its next start.
'left' lists the approvals that are still good; if there are none, no manager starts again
before another image is approved. A number that was not used yet is lost as well.

Writes DIR/revocations/N.json, N counting from 0.

examples:
  vtpmctl authority revoke authority --number 3 5 --reason CVE-2026-1234
  vtpmctl authority revoke authority --below 7 --reason 'minimum version 7'
""",
        ),
        "enroll": (
            "sign who may operate managers, which groups tenants have, or that a platform is one of ours",
            """\
Operators (--operator). Roles:
  admin       everything
  operator    create, start, stop, destroy; reading
  auditor     reading; the audit log

--key is a public key: the operator makes it with 'key new' and keeps the private
one. Enrolling the same name and key again changes the role. A name with another key, a key
with another name, and a key that was removed are refused (exit code 3).

Writes DIR/operators/NAME.json; 'provision' or 'operator add' hands it to a manager.

Groups (--group, with --authority): a tenant's vTPMs, whose operators are enrolled by that
other authority from then on, in its own directory. --hierarchy says what vouches for the
AKs of its vTPMs: sk (default), ak-vek, ak-vak or independent; ek is refused, an EK never
signs. A group never gets another authority.

Writes DIR/groups/NAME.json; 'group add' hands it to a manager.

Platforms, in two steps; the manager's are those of the verb 'platform'. --platform NAME looks at the
evidence: the EK's certificate must be signed by a CA of --vendor-ca, and AK and EK made
as they must be. It writes a challenge, which only that TPM can answer, to --out. --answer
FILE checks the answer and writes the enrolment to --out: the statement about the platform
and a certificate (X.509, under authority.pem) for each of its signing keys. One TPM has
one name, for ever; enrolling it again, or more of its keys, replaces the statement.
Exit code 6 for evidence or an answer that proves nothing.

Recovery (--recovery FILE): managers wrap their root key and the key of each commit to this
public key, made with 'key new' for nothing else. Whoever has the private key can read
every disk of such a manager, old ones too: keep it offline. The newest recipient counts,
a manager never takes an older one. Writes DIR/recovery/N.json; 'provision --recovery' or
'recovery set' hands it to a manager.

Writes DIR/platforms/NAME.json, DIR/challenges/ID.json until the answer is there, and
DIR/enrolments/N.json, which alone says which certificate is whose.

examples:
  vtpmctl authority enroll authority --operator alice --key alice.key.pub --role operator
  vtpmctl authority enroll authority --group acme --authority acme/authority.pub
  vtpmctl authority enroll acme --operator bob --key bob.key.pub --role operator
  vtpmctl authority enroll DIR --platform rack7 --evidence evidence.json --vendor-ca vendor.pem --out challenge.json
  vtpmctl authority enroll authority --answer answer.json --out enrolment.json
  vtpmctl authority enroll authority --recovery recovery.key.pub
""",
        ),
        "remove": (
            "sign that an operator's key is void",
            """\
The key is void for ever; the name may be enrolled again with a new key. Managers obey the
old key until they have taken the removal over.

Writes DIR/removals/KEY-ID.json; the enrolment moves to KEY-ID.enrolment.json beside it.
'operator remove' hands the removal to a manager.

example: vtpmctl authority remove authority --operator alice --reason left
""",
        ),
        "recover": (
            "order a manager's recovery: from a hardware TPM that died or was cleared, to another",
            """\
--manager, --from and --to are what 'status' of the waiting manager shows; the Names are
those of the TPMs' SRKs. Make sure that the old TPM is gone for good, and that the new one
is one: the manager goes on there, with the disk that lies there. A TPM that was cleared
has another SRK, so an order serves once. It carries along which approvals are revoked,
for the old TPM's revocation bits went with it.

A second order that leads elsewhere from the same TPM is refused (exit code 3): if the
first was used there would be two managers. --again insists, if it was not.

Writes DIR/recovery/N.json, for 'recover --order'.

example: vtpmctl authority recover authority --manager 8c1f... --from 000b5e... --to 000ba0... --reason 'board died'
""",
        ),
        "order": (
            "order the move of one vTPM from one platform to another",
            """\
--vtpm and --generation are what 'show' of the vTPM's manager says, --from and --to the
names of both platforms ('platform show'). The order is good once: the generation grows
with each move. The directory is that of the authority of the vTPM's group: DIR of the
platforms for the group default, the tenant's own for a tenant's.

example: vtpmctl authority order authority --vtpm 0d2c... --generation 1 --from rack1 --to rack2 --out order.json
""",
        ),
        "relocate": (
            "order the move of a whole manager from one platform to another",
            """\
--manager and --relocations are what 'status' of the manager says, --from and --to the
names of both platforms ('platform show'). The order is good once: the manager counts how
often it has moved.

example: vtpmctl authority relocate authority --manager 8c1f... --relocations 0 --from rack1 --to rack2 --out order.json
""",
        ),
        "standing": (
            "let a VM take its vTPM along between platforms, as often as its hypervisor moves it",
            """\
--serial: 1 for the first one of this VM, one more for each that follows; managers take a
newer one only. Without --platform it revokes what was ordered before.

example: vtpmctl authority standing authority --vm 0d2c... --platform rack1 rack2 --serial 1 --out web.json
""",
        ),
        "show": (
            "what a signed file says, and whether the signature is good",
            """\
verdict begins with 'verified' or with 'NOT verified' and the cause. Without --authority
nothing is verified, and the exit code is 0: believe nothing of it. With --authority the
exit code is 6 if the file is not what that authority signed. With --json both print one
object; its member "verified" is true or false.

"statement" is what stands in the file, "meaning" what follows from it once verified: the
policy that an approval authorises, the one that root keys are sealed under, PCR 11 after
the cap; the numbers that a revocation voids; what an operator may do.

examples:
  vtpmctl authority show authority/approvals/0.json --authority authority/authority.pub
  vtpmctl authority show 0.json --authority authority.pub --json | jq .verified
""",
        ),
    },
    "credential": {
        "show": (
            "what a credential says, and whether it is good",
            """\
--authority FILE: the key of the platforms' authority, for sk, ak-vak and ak-vek. --root FILE:
the certificate (PEM) of the outside CA, for independent. Exit code 6 if it is not good. With
ak-vek only the vTPM's EK is proven: make sure that the AK is in the same vTPM with
tpm2_makecredential and tpm2_activatecredential.

example: vtpmctl credential show web1.json --authority authority.pub
""",
        ),
    },
    "key": {
        "new": (
            "make a key, for an operator or for recovery: FILE and FILE.pub",
            """\
P-256, as PEM without a passphrase: FILE (mode 0600) is the private key, FILE.pub the
public one, to be enrolled by the authority. A key signs or recovers, never
both. Existing files are never overwritten (exit code 3).

example: vtpmctl key new alice.key
""",
        ),
    },
}
