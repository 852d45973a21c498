"""A platform and vTPMs whose keys are software: they sign what TPMs sign, so that whole bundles need no TPM."""

from __future__ import annotations

import datetime
import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from manager_vm.errors import EvidenceError
from manager_vm.keys import evidence
from manager_vm.keys.ek_ca import EkCa
from manager_vm.keys.evidence import Subject
from manager_vm.keys.hwtpm.attest import Signed
from manager_vm.trust import approval, attestation_ca, bundle, linked, pcrs, platform, policy, templates, tpm_structures
from manager_vm.trust.bundle import Bundle, History
from manager_vm.trust.linked import Demand
from manager_vm.trust.signing import SigningKey
from manager_vm.wire.quote import QuoteBegin

NOW = datetime.datetime(2026, 11, 26, tzinfo=datetime.UTC)
NONCE = bytes(range(32))
AK = 0x00050472  # fixedTPM fixedParent sensitiveDataOrigin userWithAuth noDA restricted sign
HANDLE = 0x8101A001
_SHA256 = ec.ECDSA(hashes.SHA256())


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _point(key: ec.EllipticCurvePrivateKey) -> bytes:
    numbers = key.public_key().public_numbers()
    return _sized(numbers.x.to_bytes(32)) + _sized(numbers.y.to_bytes(32))


class SoftwareAk:
    """An AK: TPMT_PUBLIC with these attributes, and TPM2_Quote."""

    def __init__(self, attributes: int = AK) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        head = struct.pack(">HHIHHHHHH", 0x23, 0xB, attributes, 0, 0x10, 0x18, 0xB, 0x3, 0x10)
        self.public = head + _point(self._key)

    def quote(self, nonce: bytes, values: Mapping[int, bytes], magic: int = 0xFF544347, type_: int = 0x8018) -> Signed:
        """TPMS_ATTEST and TPMT_SIGNATURE over SHA-256 PCRs."""
        digest = hashlib.sha256(b"".join(values[pcr] for pcr in sorted(values))).digest()
        said = policy.pcr_selection(sorted(values)) + _sized(digest)
        head = struct.pack(">IH", magic, type_) + _sized(b"\0\x0b" + bytes(32)) + _sized(nonce)
        return self.sign(head + bytes(17) + bytes(8) + said)

    def sign(self, attested: bytes) -> Signed:
        """Whatever it is: software does not refuse."""
        r, s = utils.decode_dss_signature(self._key.sign(attested, _SHA256))
        return Signed(attested, struct.pack(">HH", 0x18, 0xB) + _sized(r.to_bytes(32)) + _sized(s.to_bytes(32)))


class SoftwareVtpm:
    """A vTPM with an EK, its certificate, and an AK."""

    def __init__(self, ca: EkCa, uuid: str = "vtpm", attributes: int = AK) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        area = templates.template("ecc-p256").public[:-68] + _point(key)
        names = {"ecc-p256": policy.name(area)}
        self.subject = Subject(uuid, names, {"ecc-p256": ca.issue(key.public_key())}, ca.certificate, History())
        self.ak = SoftwareAk(attributes)
        self.pcrs = {pcr: bytes([pcr]) * 32 for pcr in range(4)}

    def question(self, nonce: bytes = NONCE, carried: bytes | None = None) -> QuoteBegin:
        """What its guest asks its manager. ``carried``: the quote's own qualifying data."""
        made = self.ak.quote(nonce if carried is None else carried, self.pcrs)
        return QuoteBegin(1, HANDLE, nonce, made.attested, made.signature)


def _image() -> dict[int, bytes]:
    return {4: b"4" * 32, 9: b"9" * 32, 11: b"B" * 32, 12: bytes(32), 13: bytes(32)}


@dataclass
class SoftwarePlatform:
    """A ``Voucher``. ``image``: PCRs before the cap. ``values``: what the TPM shows, if it is something else."""

    authority: SigningKey = field(default_factory=SigningKey.create)
    image: dict[int, bytes] = field(default_factory=_image)
    values: dict[int, bytes] | None = None
    log: bytes = b""
    approves: bool = True
    enrolled: bool = True

    def __post_init__(self) -> None:
        self.ca = EkCa.create("EK CA")
        self.ak = SoftwareAk()
        self.sk = ec.generate_private_key(ec.SECP256R1())
        self.asked: list[str] = []

    def vtpm(self, attributes: int = AK) -> SoftwareVtpm:
        """A new one."""
        return SoftwareVtpm(self.ca, attributes=attributes)

    def demand(self, **other: object) -> Demand:
        """Of a verifier who trusts our authority."""
        values: dict[str, object] = {"authority": self.authority.public, "nonce": NONCE, "now": NOW}
        return Demand(**{**values, **other})  # type: ignore[arg-type]

    def linked(self, vtpm: SoftwareVtpm | None = None) -> Bundle:
        """A good linked bundle; its vTPM's PCR values as the guest adds them."""
        vtpm = vtpm or self.vtpm()
        made = evidence.linked_quote(self, vtpm.subject, vtpm.question(), vtpm.ak.public)
        return complete(bundle.parse(made), vtpm)

    # -- Voucher ----------------------------------------------------------------------------------------------

    def sign(self, uuid: str, digest: bytes) -> bytes:
        self.asked.append("sign")
        r, s = utils.decode_dss_signature(self.sk.sign(digest, ec.ECDSA(utils.Prehashed(hashes.SHA256()))))
        return r.to_bytes(32) + s.to_bytes(32)

    def chain(self, uuid: str) -> list[bytes]:
        return [attestation_ca.certify_sk(self.sk.public_key(), self.authority, NOW)]

    def statement(self) -> bytes:
        if not self.enrolled:
            raise EvidenceError("not enrolled")
        ak = tpm_structures.parse_public(self.ak.public)
        return platform.enrol("host", ak, bytes(32), 1, self.authority)

    def pcrs(self) -> dict[int, bytes]:
        return self.values or pcrs.serving(self.image)

    def approval(self, values: Mapping[int, bytes]) -> bytes:
        return approval.approve(3, "release", self.image, self.authority) if self.approves else b""

    def event_log(self) -> bytes:
        return self.log

    def quote(self, qualifying: bytes) -> Signed:
        self.asked.append("quote")
        return self.ak.quote(qualifying, self.pcrs())


def complete(found: Bundle, vtpm: SoftwareVtpm) -> Bundle:
    """With the PCR values that the guest adds."""
    from dataclasses import replace

    assert found.quote is not None
    return replace(found, quote=replace(found.quote, pcrs={"sha256": vtpm.pcrs}))


def proven(found: Bundle, demand: Demand) -> list[str]:
    """All that the product's verifier proves."""
    return list(linked.verify(bundle.pack(found), demand))
