"""Evidence: what this manager and its hardware TPM say of a vTPM and of a quote that was made in it (EVIDENCE.md).

The manager says only what it knows itself: which EK the vTPM was made with, and the AK's public area as it has read it
from that vTPM. A guest's own word is not repeated.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from manager_vm.errors import EvidenceError, NoEvidenceError
from manager_vm.keys import identity
from manager_vm.keys.approvals import Images
from manager_vm.keys.hwtpm import attest, sealing
from manager_vm.keys.hwtpm.attest import Signed
from manager_vm.keys.hwtpm.auths import Authorizations
from manager_vm.keys.hwtpm.connection import Connection
from manager_vm.store.manifest import Manifest
from manager_vm.trust import bundle, linked, policy, templates
from manager_vm.trust.bundle import Bundle, History, Host, Kind, Vtpm, VtpmQuote
from manager_vm.wire.quote import MAX_EVIDENCE, NONCE_SIZES, QuoteBegin, Refusal

_EK_KIND = "ecc-p256"
_PERSISTENT = 0x81  # TPM_HT_PERSISTENT


class Voucher(Protocol):
    """Who signs for this platform. Every method may take as long as a hardware TPM does, and fail as one."""

    def sign(self, uuid: str, digest: bytes) -> bytes:
        """ECDSA by the SK of this vTPM over a SHA-256 digest, r || s."""

    def chain(self, uuid: str) -> list[bytes]:
        """Certificates (DER) of that SK, its own first."""

    def statement(self) -> bytes:
        """The authority's about this platform."""

    def pcrs(self) -> dict[int, bytes]:
        """What the PCRs are that stand for the image."""

    def approval(self, pcrs: Mapping[int, bytes]) -> bytes:
        """The authority's of that image, b"" if there is none."""

    def event_log(self) -> bytes:
        """How the PCRs came to be what they are, b"" where nobody knows."""

    def quote(self, qualifying: bytes) -> Signed:
        """The hardware TPM's, by its AK, over those PCRs."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A vTPM as its record has it. ``ca``: the certificate (DER) of who has certified its EKs."""

    uuid: str
    ek_names: Mapping[str, bytes]
    certificates: Mapping[str, bytes]
    ca: bytes
    history: History


class HardwareVoucher:
    """The real one: SKs and AK of the hardware TPM. ``event_log``: the kernel's, b"" where there is none."""

    def __init__(
        self,
        connection: Connection,
        auths: Authorizations,
        images: Images,
        manifest: Manifest,
        event_log: Callable[[], bytes],
    ) -> None:
        self._connection = connection
        self._auths = auths
        self._images = images
        self._manifest = manifest
        self._event_log = event_log
        self._signer = identity.Signer(connection, auths, manifest)

    def sign(self, uuid: str, digest: bytes) -> bytes:
        """TPM2_Sign."""
        return self._signer.sign(uuid, digest)

    def chain(self, uuid: str) -> list[bytes]:
        """From the manifest."""
        return identity.chain(self._manifest.contents, uuid)

    def statement(self) -> bytes:
        """From the manifest."""
        contents = self._manifest.contents
        identity.verified(contents)
        assert contents.identity is not None
        return contents.identity.statement

    def pcrs(self) -> dict[int, bytes]:
        """TPM2_PCR_Read."""
        return sealing.read_pcrs(self._connection)

    def approval(self, pcrs: Mapping[int, bytes]) -> bytes:
        """Of those that this manager keeps."""
        return self._images.fitting(pcrs)

    def event_log(self) -> bytes:
        """The kernel's, or that of the platform to which this manager has come while it ran."""
        return self._event_log()

    def log_is(self, log: bytes) -> None:
        """The kernel's is that of another platform: this one's."""
        self._event_log = lambda: log

    def quote(self, qualifying: bytes) -> Signed:
        """TPM2_Quote."""
        return attest.quote(self._connection, self._auths, policy.BOUND_PCRS, qualifying)


def check_question(question: QuoteBegin) -> None:
    """NoEvidenceError for one that cannot be answered whatever the vTPM says."""
    if question.handle >> 24 != _PERSISTENT:
        raise NoEvidenceError(
            f"{question.handle:#010x} is no persistent handle; make the AK persistent (TPM2_EvictControl)",
            Refusal.NO_KEY,
        )
    if len(question.nonce) not in NONCE_SIZES:
        raise NoEvidenceError(
            f"a nonce of {len(question.nonce)} bytes; use {NONCE_SIZES[0]} to {NONCE_SIZES[-1]}", Refusal.NONCE
        )


def linked_quote(voucher: Voucher, subject: Subject, question: QuoteBegin, public: bytes) -> bytes:
    """The bundle for a guest's quote; its PCR values are added by the guest. ``public``: TPMT_PUBLIC of the AK as the
    vTPM itself has just given it. NoEvidenceError says what is wrong with the question.
    """
    vtpm = _vtpm(subject)
    name = _check_ak(public, question)
    binding = bundle.linked_binding(subject.ek_names[_EK_KIND], vtpm.history, name, question.quote, question.nonce)
    quote = VtpmQuote(public, question.quote, question.signature, {})
    return _made(voucher, subject, Kind.LINKED, question.nonce, vtpm, quote, binding)


def platform_quote(voucher: Voucher, subject: Subject, nonce: bytes) -> bytes:
    """The bundle about a vTPM and its platform alone."""
    if len(nonce) not in NONCE_SIZES:
        raise NoEvidenceError(
            f"a nonce of {len(nonce)} bytes; use {NONCE_SIZES[0]} to {NONCE_SIZES[-1]}", Refusal.NONCE
        )
    vtpm = _vtpm(subject)
    binding = bundle.platform_binding(subject.ek_names[_EK_KIND], vtpm.history, nonce)
    return _made(voucher, subject, Kind.PLATFORM, nonce, vtpm, None, binding)


def _made(
    voucher: Voucher,
    subject: Subject,
    kind: Kind,
    nonce: bytes,
    vtpm: Vtpm,
    quote: VtpmQuote | None,
    binding: bytes,
) -> bytes:
    voucher.statement()  # first: nothing is signed for a platform that is not enrolled
    signature = voucher.sign(subject.uuid, binding)  # it gives the vTPM an SK where it has none
    said = bundle.Voucher(signature, tuple(voucher.chain(subject.uuid)))
    host = host_evidence(voucher, binding)
    made = bundle.pack(Bundle(kind, nonce, vtpm, quote, said, host))
    if len(made) > MAX_EVIDENCE:
        raise NoEvidenceError(f"the evidence would have {len(made)} bytes", Refusal.HARDWARE)
    return made


def host_evidence(voucher: Voucher, binding: bytes) -> Host:
    """What the hardware TPM and the authority say of this platform, over ``binding`` (32 bytes)."""
    statement, values = voucher.statement(), voucher.pcrs()
    approval, log = voucher.approval(values), voucher.event_log()
    signed = voucher.quote(bundle.host_binding(binding, statement, approval, log))
    return Host(statement, approval, log, signed.attested, signed.signature, values)


def _vtpm(subject: Subject) -> Vtpm:
    name, certificate = subject.ek_names.get(_EK_KIND), subject.certificates.get(_EK_KIND)
    if not name or not certificate:
        raise NoEvidenceError(
            "this vTPM has no recorded EK of the kind P-256; nothing can be said of it", Refusal.NO_EK
        )
    return Vtpm(ek_public(certificate, name), certificate, subject.ca, subject.history)


def ek_public(certificate: bytes, name: bytes) -> bytes:
    """TPMT_PUBLIC of the P-256 EK with this certificate and Name: its template with the certified point."""
    key = x509.load_der_x509_certificate(certificate).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise NoEvidenceError("the recorded EK is not on P-256", Refusal.NO_EK)
    numbers, template = key.public_numbers(), templates.template(_EK_KIND).public
    point = b"".join(struct.pack(">H", 32) + each.to_bytes(32) for each in (numbers.x, numbers.y))
    area = template[: -len(point)] + point
    if policy.name(area) != name:
        raise NoEvidenceError("the recorded EK is not the certified one", Refusal.NO_EK)
    return area


def _check_ak(public: bytes, question: QuoteBegin) -> bytes:
    """The AK's Name."""
    try:
        ak = linked.check_ak(public)
    except EvidenceError as error:
        raise NoEvidenceError(str(error), Refusal.NOT_AN_AK) from None
    try:
        linked.check_signed(ak, question.quote, question.signature)
    except EvidenceError as error:
        raise NoEvidenceError(str(error), Refusal.NOT_ITS_QUOTE) from None
    try:
        linked.check_quote(ak, question.quote, question.signature, question.nonce)
    except EvidenceError as error:
        raise NoEvidenceError(str(error), Refusal.NONCE) from None
    return ak.name
