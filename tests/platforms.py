"""Two platforms and their vTPMs in one process, each TPM a real swtpm: for tests and benchmarks of key hierarchies.

A platform's hardware TPM is owned and enrolled as a manager does it; all commands to it are counted at the wire.
"""

from __future__ import annotations

import datetime
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from manager_vm.keys.ek_ca import EkCa
from manager_vm.keys.hierarchy import Subject, ak_vek
from manager_vm.keys.hwtpm import attest, auths, ownership
from manager_vm.keys.hwtpm.attest import Signed
from manager_vm.keys.hwtpm.connection import Connection
from manager_vm.keys.keyslot import Keyslot
from manager_vm.trust import attestation_ca, credential, platform, policy, templates, tpm_structures
from manager_vm.trust.signing import SigningKey
from manager_vm.trust.tpm_structures import Public
from manager_vm.vtpm import manufacture
from manager_vm.vtpm.sandbox import Sandbox
from manager_vm.vtpm.standin import Standin
from manager_vm.vtpm.swtpm import Swtpm
from manager_vm.wire import tpm

# TPM_CC (Part 2, 6.5.2): commands in which a key of the hardware TPM is made or used, and those around them
KEY_OPERATIONS = {
    0x131: "CreatePrimary",
    0x153: "Create",
    0x147: "ActivateCredential",
    0x148: "Certify",
    0x158: "Quote",
    0x15D: "Sign",
}
COMMANDS = KEY_OPERATIONS | {
    0x157: "Load",
    0x165: "FlushContext",
    0x173: "ReadPublic",
    0x176: "StartAuthSession",
    0x17A: "GetCapability",
}
AK_HANDLE = 0x81010002
_AK = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign_encrypt"
_POOL = 16


class Wire:
    """To a hardware TPM: counts commands by their code."""

    def __init__(self, standin: Standin) -> None:
        self.standin = standin
        self.count: Counter[int] = Counter()

    def execute(self, command: bytes) -> bytes:
        self.count[tpm.command_code(command)] += 1
        return self.standin.execute(command)

    def operations(self) -> int:
        """How often a key was made or used."""
        return sum(self.count[code] for code in KEY_OPERATIONS)


class Platform:
    """A host with a hardware TPM that the authority has enrolled; what hierarchies ask it (``hierarchy.Hardware``)."""

    def __init__(self, directory: Path, name: str, authority: SigningKey, above: bytes, pool: int = _POOL) -> None:
        """``above``: the authority's certificate, made once (DER). ``pool``: SKs made and certified ahead."""
        self.wire = Wire(Standin(directory / name, "swtpm"))
        self._connection = Connection(self.wire)
        slot = Keyslot(directory / f"{name}.keyslot", self._connection)
        root = slot.create(authority.public)
        self._auths = auths.derive(root, slot.read().srk)
        ownership.take(self._connection, self._auths)
        now = datetime.datetime.now(datetime.UTC)
        self.ak = tpm_structures.parse_public(attest.make_ak(self._connection, self._auths))
        ek = hashlib.sha256(attest.ek_certificate(self._connection, "ecc-p256") or b"").digest()
        self._statement = platform.enrol(name, self.ak, ek, 1, authority)
        self._above = above
        self._pool = [
            (key, attestation_ca.certify_sk(_sk(key.public), authority, now))
            for key in attest.make_sks(self._connection, self._auths, pool)
        ]
        self._assigned: dict[str, int] = {}

    @property
    def assigned(self) -> int:
        """How many SKs are taken."""
        return len(self._assigned)

    def forget(self) -> None:
        """All vTPMs have left; their SKs are never used again."""
        self._pool = self._pool[len(self._assigned) :]
        self._assigned = {}

    def sign(self, uuid: str, digest: bytes) -> bytes:
        return attest.sign(self._connection, self._auths, self._pool[self._assigned[uuid]][0], digest)

    def chain(self, uuid: str) -> Sequence[bytes]:
        index = self._assigned.setdefault(uuid, len(self._assigned))
        return [self._pool[index][1], self._above]

    def quote(self, qualifying: bytes) -> Signed:
        return attest.quote(self._connection, self._auths, policy.BOUND_PCRS, qualifying)

    def statement(self) -> bytes:
        return self._statement

    def try_to_sign_with_the_ek(self) -> int:
        """The response code of TPM2_Sign with the hardware EK."""

        def run(esapi: Any, session: Any) -> int:
            from tpm2_pytss import TPMT_SIG_SCHEME, TPMT_TK_HASHCHECK, TSS2_Exception
            from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_RH, TPM2_SE, TPM2_ST

            with attest._ek(esapi, self._auths, "ecc-p256", session) as (ek, _):
                with auths.endorsement(esapi, self._auths) as hierarchy:
                    policy_session = esapi.start_auth_session(
                        ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, None, "sha256"
                    )
                    esapi.policy_secret(hierarchy, policy_session, b"", b"", b"", 0, session1=session)
                ticket = TPMT_TK_HASHCHECK(tag=TPM2_ST.HASHCHECK, hierarchy=TPM2_RH.NULL)
                scheme = TPMT_SIG_SCHEME(scheme=TPM2_ALG.ECDSA)
                scheme.details.any.hashAlg = TPM2_ALG.SHA256
                try:
                    esapi.sign(ek, bytes(32), scheme, ticket, session1=policy_session)
                except TSS2_Exception as error:
                    return int(error.rc)
                finally:
                    esapi.flush_context(policy_session)
            return 0

        return self._connection.protected("sign with the EK", run)

    def close(self) -> None:
        self._connection.close()
        self.wire.standin.close()


def above(authority: SigningKey) -> bytes:
    """The authority's certificate."""
    found = attestation_ca.certify_authority(authority, datetime.datetime.now(datetime.UTC))
    return found.public_bytes(serialization.Encoding.DER)


class Vtpm:
    """A vTPM with EKs by its group's CA, and an AK that its guest has made."""

    def __init__(self, directory: Path, uuid: str, ca: EkCa) -> None:
        (directory / uuid).mkdir()
        self.uuid = uuid
        self.ca = ca
        self._swtpm = Swtpm.spawn(directory / uuid, os.urandom(32), Sandbox(None), binary="swtpm")
        self._swtpm.init()
        self._made = manufacture.manufacture(self._swtpm, ca)
        self._swtpm.init()
        manufacture.demand(self._swtpm, tpm.startup())
        self._connection = Connection(self._swtpm)
        self._connection.request("make a vAK", _make_ak)

    def subject(self) -> Subject:
        """As the manager reads it from the vTPM now."""
        body = manufacture.demand(self._swtpm, tpm.read_public(AK_HANDLE))
        ak = tpm_structures.parse_public(body[2 : 2 + int.from_bytes(body[:2])])
        return Subject(self.uuid, ak, self._made.ek_names, self._made.certificates, self.ca.certificate)

    def activate(self, made: credential.Credential) -> bytes:
        """What a guest does for who asks whether its AK is in the TPM with that EK."""
        return self._connection.request("activate", lambda esapi: _activate(esapi, made))

    def close(self) -> None:
        self._connection.close()
        self._swtpm.close()


class OutsideCa:
    """Whoever relies on vEKs: asks the vTPM for its AK, and may certify it. ``contacts``: how often it was asked."""

    def __init__(self) -> None:
        self.contacts = 0
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "outside CA")])
        ca = x509.BasicConstraints(ca=True, path_length=0)
        self.certificate = self._signed(name, name, self._key.public_key(), ca)

    @property
    def root(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    def ask(self, vtpm: Vtpm, ek: Public, ak: Public) -> bool:
        """Whether both are in this vTPM."""
        self.contacts += 1
        secret = os.urandom(32)
        return vtpm.activate(credential.make(ek, ak.name, secret)) == secret

    def certify(self, vtpm: Vtpm) -> bytes:
        """PEM of a certificate for its AK."""
        subject = vtpm.subject()
        ek = tpm_structures.parse_public(ak_vek.vek(subject))
        assert self.ask(vtpm, ek, subject.ak)
        person = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "AK of a virtual TPM")])
        made = self._signed(person, self.certificate.subject, subject.ak.key, x509.BasicConstraints(False, None))
        return made.public_bytes(serialization.Encoding.PEM)

    def _signed(
        self, subject: x509.Name, issuer: x509.Name, key: Any, basic: x509.BasicConstraints
    ) -> x509.Certificate:
        today = datetime.datetime.now(datetime.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
        builder = builder.serial_number(x509.random_serial_number()).add_extension(basic, critical=True)
        builder = builder.not_valid_before(today).not_valid_after(today + datetime.timedelta(days=365))
        return builder.sign(self._key, hashes.SHA256())


def _sk(public: bytes) -> ec.EllipticCurvePublicKey:
    found = tpm_structures.parse_public(tpm_structures.unwrap(public, "an SK"))
    platform.check_sk(found)
    assert isinstance(found.key, ec.EllipticCurvePublicKey)
    return found.key


def _make_ak(esapi: Any) -> None:
    from tpm2_pytss import TPM2B_PUBLIC
    from tpm2_pytss.constants import ESYS_TR, TPMA_OBJECT

    template = TPM2B_PUBLIC.parse("ecc256:ecdsa-sha256:null", objectAttributes=TPMA_OBJECT.parse(_AK))
    template.publicArea.unique.ecc.x.buffer = os.urandom(32)
    made = esapi.create_primary(None, template, ESYS_TR.ENDORSEMENT)[0]
    esapi.tr_close(esapi.evict_control(ESYS_TR.OWNER, made, AK_HANDLE))
    esapi.flush_context(made)


def _activate(esapi: Any, made: credential.Credential) -> bytes:
    from tpm2_pytss import TPM2B_ENCRYPTED_SECRET, TPM2B_ID_OBJECT, TPM2B_PUBLIC, TPMT_PUBLIC
    from tpm2_pytss.constants import ESYS_TR, TPM2_SE

    area, _ = TPMT_PUBLIC.unmarshal(templates.template(ak_vek.EK_KIND).public)
    ek = esapi.create_primary(None, TPM2B_PUBLIC(publicArea=area), ESYS_TR.ENDORSEMENT)[0]
    session = esapi.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, None, "sha256")
    ak = esapi.tr_from_tpmpublic(AK_HANDLE)
    try:
        esapi.policy_secret(ESYS_TR.ENDORSEMENT, session, b"", b"", b"", 0)
        blob, _ = TPM2B_ID_OBJECT.unmarshal(made.blob)
        secret, _ = TPM2B_ENCRYPTED_SECRET.unmarshal(made.secret)
        return bytes(esapi.activate_credential(ak, ek, blob, secret, session2=session))
    finally:
        esapi.tr_close(ak)
        esapi.flush_context(session)
        esapi.flush_context(ek)
