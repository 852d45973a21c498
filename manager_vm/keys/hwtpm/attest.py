"""Keys of the platform that attest, and what they sign. Their rules of use (R9): the EK never signs; the AK,
restricted, signs only what its TPM has made; SKs sign credentials of vTPMs and nothing of the TPM's.

| key | template | where |
|---|---|---|
| EK | TCG EK Credential Profile 2.5, L-2 (P-256) or L-1 (RSA-2048): that of the certificate | made when needed |
| AK | ECDSA P-256, restricted, fixedTPM, noDA; its authValue is derived from the root key | persistent 0x81000A02 |
| SK | ECDSA P-256, not restricted, fixedTPM, noDA | TPM2B_PUBLIC and TPM2B_PRIVATE in the manifest |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from manager_vm.crypto import Key
from manager_vm.keys.hwtpm.auths import Authorizations, endorsement, owner
from manager_vm.keys.hwtpm.connection import Connection, flushed
from manager_vm.keys.hwtpm.sealing import SealedKey
from manager_vm.trust import templates
from manager_vm.trust.signing import COORDINATE_SIZE

if TYPE_CHECKING:
    from tpm2_pytss import ESAPI, ESYS_TR

AK_HANDLE = 0x81000A02  # owner range of the registry of reserved handles
_SIGNING = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign_encrypt"
_NV_CHUNK = 512  # bytes of one TPM2_NV_Read


@dataclass(frozen=True, slots=True)
class Signed:
    """``attested``: TPMS_ATTEST, marshalled. ``signature``: TPMT_SIGNATURE, marshalled."""

    attested: bytes
    signature: bytes


def make_ak(connection: Connection, auths: Authorizations) -> bytes:
    """TPMT_PUBLIC of the AK, made if there is none."""

    def make(tpm: ESAPI, session: ESYS_TR) -> bytes:
        from tpm2_pytss import TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TPMS_SENSITIVE_CREATE
        from tpm2_pytss.constants import TPM2_CAP, TPMA_OBJECT

        _, data = tpm.get_capability(TPM2_CAP.HANDLES, AK_HANDLE, 1)
        if AK_HANDLE not in [int(handle) for handle in data.data.handles]:
            attributes = TPMA_OBJECT.parse(f"{_SIGNING}|restricted")
            template = TPM2B_PUBLIC.parse("ecc256:ecdsa-sha256:null", objectAttributes=attributes)
            sensitive = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(userAuth=auths.ak.reveal()))
            with owner(tpm, auths) as hierarchy:
                made = tpm.create_primary(sensitive, template, hierarchy, session1=session)[0]
                with flushed(tpm, made):
                    tpm.tr_close(tpm.evict_control(hierarchy, made, AK_HANDLE, session1=session))
        with _ak(tpm, None) as handle:
            public, _, _ = tpm.read_public(handle)
            return bytes(public.publicArea.marshal())

    return connection.protected("make the AK", make)


def ek_public(connection: Connection, auths: Authorizations, kind: str) -> bytes:
    """TPMT_PUBLIC of the EK of this kind (``templates.EK_TEMPLATES``)."""

    def make(tpm: ESAPI, session: ESYS_TR) -> bytes:
        with _ek(tpm, auths, kind, session) as (_, public):
            return public

    return connection.protected("make the EK", make)


def ek_certificate(connection: Connection, kind: str) -> bytes | None:
    """The certificate (DER) that the TPM's vendor has left in NV for the EK of this kind; None if there is none."""
    index = templates.template(kind).nv_index

    def read(tpm: ESAPI) -> bytes | None:
        from tpm2_pytss.constants import ESYS_TR, TPM2_CAP

        _, data = tpm.get_capability(TPM2_CAP.HANDLES, index, 1)
        if index not in [int(handle) for handle in data.data.handles]:
            return None
        handle = tpm.tr_from_tpmpublic(index)
        public, _ = tpm.nv_read_public(handle)
        size = int(public.nvPublic.dataSize)
        found = b""
        while len(found) < size:
            count = min(size - len(found), _NV_CHUNK)
            found += bytes(tpm.nv_read(handle, count, len(found), auth_handle=handle, session1=ESYS_TR.PASSWORD))
        return found

    return connection.request("read the EK's certificate", read)


def activate(connection: Connection, auths: Authorizations, kind: str, credential: bytes, secret: bytes) -> bytes:
    """TPM2_ActivateCredential: the secret that only the TPM with this EK and our AK can learn (Part 1, 24).

    ``credential``: TPM2B_ID_OBJECT, ``secret``: TPM2B_ENCRYPTED_SECRET, marshalled.
    """

    def run(tpm: ESAPI, session: ESYS_TR) -> bytes:
        from tpm2_pytss import TPM2B_ENCRYPTED_SECRET, TPM2B_ID_OBJECT, TPMT_SYM_DEF
        from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_SE

        blob, _ = TPM2B_ID_OBJECT.unmarshal(credential)
        encrypted, _ = TPM2B_ENCRYPTED_SECRET.unmarshal(secret)
        with _ek(tpm, auths, kind, session) as (ek, _), _ak(tpm, auths.ak) as ak, endorsement(tpm, auths) as hierarchy:
            none = TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL)
            policy_session = tpm.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, none, TPM2_ALG.SHA256)
            with flushed(tpm, policy_session):
                tpm.policy_secret(hierarchy, policy_session, b"", b"", b"", 0, session1=session)
                return bytes(
                    tpm.activate_credential(ak, ek, blob, encrypted, session1=session, session2=policy_session)
                )

    return connection.protected("activate a credential", run)


def make_sks(connection: Connection, auths: Authorizations, count: int) -> list[SealedKey]:
    """``count`` new SKs, below the SRK."""

    def make(tpm: ESAPI, session: ESYS_TR) -> list[SealedKey]:
        from tpm2_pytss import TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TPMS_SENSITIVE_CREATE
        from tpm2_pytss.constants import TPMA_OBJECT

        sensitive = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(userAuth=auths.sk.reveal()))
        template = TPM2B_PUBLIC.parse("ecc256:ecdsa-sha256:null", objectAttributes=TPMA_OBJECT.parse(_SIGNING))
        parent = connection.srk(tpm)
        found = []
        for _ in range(count):
            private, public, _, _, _ = tpm.create(parent, sensitive, template, session1=session)
            found.append(SealedKey(public.marshal(), private.marshal()))
        return found

    return connection.protected("make signing keys", make)


def certify(connection: Connection, auths: Authorizations, sks: Sequence[SealedKey], nonce: bytes) -> list[Signed]:
    """TPM2_Certify by the AK: each of these keys is in the AK's TPM and cannot leave it (fixedTPM)."""

    def run(tpm: ESAPI, session: ESYS_TR) -> list[Signed]:
        found = []
        with _ak(tpm, auths.ak) as ak, connection.session(tpm, encrypts=False) as other:
            for sk in sks:
                with _loaded(connection, tpm, sk, auths, session) as key:
                    attested, signature = tpm.certify(key, ak, nonce, _no_scheme(), session1=other, session2=session)
                    found.append(Signed(bytes(attested), signature.marshal()))
        return found

    return connection.protected("certify signing keys", run)


def sign(connection: Connection, auths: Authorizations, sk: SealedKey, digest: bytes) -> bytes:
    """ECDSA by an SK over a SHA-256 digest: r || s, 64 bytes."""

    def run(tpm: ESAPI, session: ESYS_TR) -> bytes:
        from tpm2_pytss import TPMT_TK_HASHCHECK
        from tpm2_pytss.constants import TPM2_RH, TPM2_ST

        with _loaded(connection, tpm, sk, auths, session) as key:
            ticket = TPMT_TK_HASHCHECK(tag=TPM2_ST.HASHCHECK, hierarchy=TPM2_RH.NULL)  # the digest is not the TPM's
            made = tpm.sign(key, digest, _no_scheme(), ticket, session1=session)  # its parts live as long as it does
            ecdsa = made.signature.ecdsa
            return b"".join(bytes(each).rjust(COORDINATE_SIZE, b"\0") for each in (ecdsa.signatureR, ecdsa.signatureS))

    return connection.protected("sign with a signing key", run)


def quote(connection: Connection, auths: Authorizations, pcrs: Sequence[int], nonce: bytes) -> Signed:
    """TPM2_Quote by the AK over SHA-256 PCRs; ``nonce``: qualifying data, at most 64 bytes."""

    def run(tpm: ESAPI, session: ESYS_TR) -> Signed:
        selection = f"sha256:{','.join(map(str, sorted(pcrs)))}"
        with _ak(tpm, auths.ak) as ak:
            attested, signature = tpm.quote(ak, selection, nonce, session1=session)
            return Signed(bytes(attested), signature.marshal())

    return connection.protected("quote", run)


def certify_nv(connection: Connection, auths: Authorizations, qualifying: bytes) -> Signed:
    """TPM2_NV_Certify by the AK of the anchor's digest part, its first 32 bytes; ``qualifying``: at most 64 bytes."""

    def run(tpm: ESAPI, session: ESYS_TR) -> Signed:
        index = tpm.tr_from_tpmpublic(auths.index)
        try:
            tpm.tr_set_auth(index, auths.anchor.reveal())
            with _ak(tpm, auths.ak) as ak, connection.session(tpm, encrypts=False) as other:
                attested, signature = tpm.nv_certify(
                    ak, index, qualifying, _no_scheme(), 32, 0, auth_handle=index, session1=session, session2=other
                )
                return Signed(bytes(attested), signature.marshal())
        finally:
            tpm.tr_close(index)

    return connection.protected("certify the anchor", run)


@contextmanager
def _ek(tpm: ESAPI, auths: Authorizations, kind: str, session: ESYS_TR) -> Iterator[tuple[ESYS_TR, bytes]]:
    from tpm2_pytss import TPM2B_PUBLIC, TPMT_PUBLIC

    area, _ = TPMT_PUBLIC.unmarshal(templates.template(kind).public)
    with endorsement(tpm, auths) as hierarchy:
        handle, public, _, _, _ = tpm.create_primary(None, TPM2B_PUBLIC(publicArea=area), hierarchy, session1=session)
    with flushed(tpm, handle):
        yield handle, bytes(public.publicArea.marshal())


@contextmanager
def _ak(tpm: ESAPI, auth: Key | None) -> Iterator[ESYS_TR]:
    handle = tpm.tr_from_tpmpublic(AK_HANDLE)
    try:
        if auth is not None:
            tpm.tr_set_auth(handle, auth.reveal())
        yield handle
    finally:
        tpm.tr_close(handle)


@contextmanager
def _loaded(
    connection: Connection, tpm: ESAPI, sk: SealedKey, auths: Authorizations, session: ESYS_TR
) -> Iterator[ESYS_TR]:
    from tpm2_pytss import TPM2B_PRIVATE, TPM2B_PUBLIC

    public, _ = TPM2B_PUBLIC.unmarshal(sk.public)
    private, _ = TPM2B_PRIVATE.unmarshal(sk.private)
    with flushed(tpm, tpm.load(connection.srk(tpm), private, public, session1=session)) as handle:
        tpm.tr_set_auth(handle, auths.sk.reveal())
        yield handle


def _no_scheme() -> Any:
    from tpm2_pytss import TPMT_SIG_SCHEME
    from tpm2_pytss.constants import TPM2_ALG

    return TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)
