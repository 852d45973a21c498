"""The root key, sealed to the SRK under the authority's policy (``trust/policy``), and PCRs.

Sealed once, never again: which images may unseal is said by approvals, and which no longer by the revocation index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from manager_vm.crypto import Key
from manager_vm.keys.hwtpm.connection import Connection, flushed
from manager_vm.trust import policy
from manager_vm.trust.approval import Approval
from manager_vm.trust.signing import COORDINATE_SIZE, VerifyKey

if TYPE_CHECKING:
    from tpm2_pytss import ESAPI, ESYS_TR

_ATTRIBUTES = "fixedtpm|fixedparent|noda|adminwithpolicy"  # no userWithAuth: the policy alone


@dataclass(frozen=True, slots=True)
class SealedKey:
    """TPM2B_PUBLIC and TPM2B_PRIVATE of the sealed object, marshalled."""

    public: bytes
    private: bytes


def seal(connection: Connection, secret: Key, authority: VerifyKey) -> SealedKey:
    """Seal ``secret`` to this TPM; only images that ``authority`` approves unseal it."""

    def create(tpm: ESAPI, session: ESYS_TR) -> SealedKey:
        from tpm2_pytss import TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TPMS_SENSITIVE_CREATE
        from tpm2_pytss.constants import TPMA_OBJECT

        digest = policy.authorised_by(authority)
        template = TPM2B_PUBLIC.parse("keyedhash", objectAttributes=TPMA_OBJECT.parse(_ATTRIBUTES), authPolicy=digest)
        sensitive = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(data=secret.reveal()))
        private, public, _, _, _ = tpm.create(connection.srk(tpm), sensitive, template, session1=session)
        return SealedKey(public.marshal(), private.marshal())

    return connection.protected("seal the root key", create)


def unseal(connection: Connection, sealed: SealedKey, authority: VerifyKey, approval: Approval) -> bytes:
    """The secret, if the PCRs are the approved ones and the approval is not revoked; HardwareTpmError(rc) otherwise."""

    def load(tpm: ESAPI, session: ESYS_TR) -> bytes:
        from tpm2_pytss import TPM2B_PRIVATE, TPM2B_PUBLIC

        public, _ = TPM2B_PUBLIC.unmarshal(sealed.public)
        private, _ = TPM2B_PRIVATE.unmarshal(sealed.private)
        loaded = tpm.load(connection.srk(tpm), private, public, session1=session)
        with flushed(tpm, loaded), connection.session(tpm, for_policy=True) as authorised:
            _satisfy(tpm, authorised, session, authority, approval)
            return bytes(tpm.unseal(loaded, session1=authorised))

    return connection.protected("unseal the root key", load)


def _satisfy(tpm: ESAPI, authorised: ESYS_TR, session: ESYS_TR, authority: VerifyKey, approval: Approval) -> None:
    """PolicyPCR, PolicyNV, PolicyAuthorize with the authority's ticket (Part 3, 23.7, 23.9, 23.16)."""
    from tpm2_pytss import TPM2B_PUBLIC, TPML_PCR_SELECTION, TPMT_PUBLIC
    from tpm2_pytss.constants import ESYS_TR, TPM2_EO

    selection = ",".join(map(str, sorted(approval.pcrs)))
    tpm.policy_pcr(authorised, b"", TPML_PCR_SELECTION.parse(f"sha256:{selection}"))
    index = tpm.tr_from_tpmpublic(policy.REVOCATION_INDEX)
    try:
        operand = policy.bit(approval.number)
        tpm.policy_nv(index, index, authorised, operand, operation=TPM2_EO.BITCLEAR, session1=session)
    finally:
        tpm.tr_close(index)
    area, _ = TPMT_PUBLIC.unmarshal(policy.public_area(authority))
    key = tpm.load_external(TPM2B_PUBLIC(publicArea=area), hierarchy=ESYS_TR.OWNER)
    with flushed(tpm, key):
        ticket = tpm.verify_signature(key, _digest(approval), _signature(approval.ticket))
    name = policy.name(policy.public_area(authority))
    # by name: tpm2-pytss 2 and 3 have another order
    tpm.policy_authorize(authorised, approval.policy, policy_ref=policy.POLICY_REF, key_sign=name, check_ticket=ticket)


def _digest(approval: Approval) -> bytes:
    import hashlib

    return hashlib.sha256(policy.to_be_signed(approval.policy)).digest()


def _signature(raw: bytes) -> object:
    from tpm2_pytss import TPMS_SIGNATURE_ECC, TPMT_SIGNATURE, TPMU_SIGNATURE
    from tpm2_pytss.constants import TPM2_ALG

    r, s = raw[:COORDINATE_SIZE], raw[COORDINATE_SIZE:]
    ecdsa = TPMS_SIGNATURE_ECC(hash=TPM2_ALG.SHA256, signatureR=r, signatureS=s)
    return TPMT_SIGNATURE(sigAlg=TPM2_ALG.ECDSA, signature=TPMU_SIGNATURE(ecdsa=ecdsa))


def read_pcrs(connection: Connection, numbers: tuple[int, ...] = policy.BOUND_PCRS) -> dict[int, bytes]:
    """SHA-256 values of these PCRs (at most eight: one TPM2_PCR_Read)."""

    def read(tpm: ESAPI) -> dict[int, bytes]:
        from tpm2_pytss import TPML_PCR_SELECTION

        selection = TPML_PCR_SELECTION.parse(f"sha256:{','.join(map(str, numbers))}")
        _, _, values = tpm.pcr_read(selection)
        return dict(zip(sorted(numbers), (bytes(value) for value in values), strict=True))

    return connection.request("read the PCRs", read)


def cap(connection: Connection) -> None:
    """Extend the capped PCR: nobody unseals again before the platform's next reset."""

    def extend(tpm: ESAPI, session: ESYS_TR) -> None:
        from tpm2_pytss import TPML_DIGEST_VALUES, TPMT_HA, TPMU_HA
        from tpm2_pytss.constants import ESYS_TR, TPM2_ALG

        value = TPMT_HA(hashAlg=TPM2_ALG.SHA256, digest=TPMU_HA(sha256=policy.CAP))
        tpm.pcr_extend(ESYS_TR(policy.CAPPED_PCR), TPML_DIGEST_VALUES([value]), session1=session)

    connection.protected(f"extend PCR {policy.CAPPED_PCR}", extend)
