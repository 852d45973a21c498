"""Verify a bundle of evidence, step by step, in the order of EVIDENCE.md; each step says what it has proven.

Offline. Trusted is the authority's key alone, and what the verifier brings along; everything in the bundle is believed
only when it is signed by somebody whom a step before has shown to be good.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from manager_vm.errors import EvidenceError
from manager_vm.trust import approval, attestation_ca, bundle, event_log, pcrs, platform, templates, tpm_structures
from manager_vm.trust.bundle import Bundle, Host, Kind, VtpmQuote
from manager_vm.trust.signing import COORDINATE_SIZE, VerifyKey
from manager_vm.trust.tpm_constants import Alg, Attributes
from manager_vm.trust.tpm_structures import Public, Quote

BANKS = {"sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D, "sha1": 0x0004}
_AK = (
    Attributes.FIXED_TPM
    | Attributes.FIXED_PARENT
    | Attributes.SENSITIVE_DATA_ORIGIN
    | Attributes.RESTRICTED
    | Attributes.SIGN_ENCRYPT
)
_X509 = (x509.InvalidVersion, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
_ZERO_PCRS = (12, 13)  # arguments, credentials and extensions from outside the image


@dataclass(frozen=True, slots=True)
class Demand:
    """What the verifier knows. ``expected``: PCR values of the image before the cap; None: what the authority approved.

    ``ek_ca``: who may have certified the EK; empty: not asked.
    """

    authority: VerifyKey
    nonce: bytes
    now: datetime.datetime
    expected: Mapping[int, bytes] | None = None
    ek_ca: tuple[x509.Certificate, ...] = ()


def verify(data: bytes, demand: Demand) -> Iterator[str]:
    """What is proven, a line each; EvidenceError, after the lines before it, for the first thing that is not."""
    found = bundle.parse(data)
    if found.nonce != demand.nonce:
        raise EvidenceError("the nonce is another one: this bundle is old, or was made for somebody else")
    yield f"nonce: the bundle ({found.kind}) answers {found.nonce.hex()}"
    ek = _ek(found)
    yield f"vTPM EK: made from template {ek[1]}, Name {ek[0].name.hex()}"
    if found.kind is not Kind.THIRD_PARTY:
        yield _ek_certificate(found, ek[0], demand)
    yield _history(found.vtpm.history)
    binding = bundle.platform_binding(ek[0].name, found.vtpm.history, found.nonce)
    if found.quote is not None:
        ak = check_ak(found.quote.ak)
        yield f"vTPM AK: restricted, never leaves its TPM, Name {ak.name.hex()}"
        yield from _vtpm_quote(found.quote, ak, found.nonce)
        binding = bundle.linked_binding(ek[0].name, found.vtpm.history, ak.name, found.quote.quote, found.nonce)
    yield _voucher(found, binding, demand)
    if found.host is not None:
        yield from host_steps(found.host, binding, demand.authority, demand.expected)


def check_ak(area: bytes) -> Public:
    """The AK of a guest; EvidenceError unless it signs only what its TPM has made, and cannot leave it."""
    ak = tpm_structures.parse_public(area)
    if missing := [each.name for each in Attributes if each in _AK & ~ak.attributes]:
        raise EvidenceError(f"the AK lacks {', '.join(map(str, missing))}: what it signs proves nothing")
    if Attributes.DECRYPT in ak.attributes or ak.scheme[0] == Alg.NULL:
        raise EvidenceError("the AK is not a signing key with a scheme of its own")
    return ak


def check_signed(ak: Public, quote: bytes, signature: bytes) -> tuple[bytes, Quote]:
    """(qualifying data, what the quote says); EvidenceError unless ``ak`` signed it and its TPM made it."""
    tpm_structures.verify_signature(ak, quote, signature)
    attest = tpm_structures.parse_attest(quote)
    if not isinstance(attest.attested, Quote):
        raise EvidenceError("what the AK signed is not a quote")
    return attest.extra_data, attest.attested


def check_quote(ak: Public, quote: bytes, signature: bytes, nonce: bytes) -> Quote:
    """What the quote says; EvidenceError unless ``ak`` signed it, its TPM made it, and it carries the nonce."""
    carried, said = check_signed(ak, quote, signature)
    if carried != nonce:
        raise EvidenceError("the quote does not carry the nonce: it is old, or was made for somebody else")
    return said


def _ek(found: Bundle) -> tuple[Public, str]:
    ek = tpm_structures.parse_public(found.vtpm.ek)
    template = templates.matching(ek)
    if template is None:
        raise EvidenceError("the vTPM's EK is not made from a template of the TCG")
    return ek, template.kind


def _history(history: bundle.History) -> str:
    said = [f"vTPM history: generation {history.generation}"]
    if history.recovered:
        said.append(f"RECOVERED {_times(history.recovered)}, from a state that may not have been the newest")
    if history.reverted:
        said.append(f"REVERTED {_times(history.reverted)}, to an earlier state")
    if history.snapshots:
        said.append(f"{history.snapshots} snapshots are kept, so it may go back to an earlier state")
    return "; ".join(said)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _ek_certificate(found: Bundle, ek: Public, demand: Demand) -> str:
    try:
        certificate = x509.load_der_x509_certificate(found.vtpm.certificate)
        ca = x509.load_der_x509_certificate(found.vtpm.ca)
        certificate.verify_directly_issued_by(ca)
        ca.verify_directly_issued_by(ca)
        key = certificate.public_key()
        ends = ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, *_X509) as error:
        raise EvidenceError(f"the EK's certificate is not good under the CA beside it ({error})") from None
    if key != ek.key or not ends:
        raise EvidenceError("the EK's certificate is for another key, or its issuer is no CA")
    fingerprint = ca.fingerprint(hashes.SHA256()).hex()
    if not demand.ek_ca:
        return f"vTPM EK certificate: good under the CA {fingerprint}, which was not compared (--ek-ca)"
    if ca not in demand.ek_ca:
        raise EvidenceError(f"the EK's certificate is from a CA that is not trusted here ({fingerprint})")
    return f"vTPM EK certificate: good under the trusted CA {fingerprint}"


def _vtpm_quote(found: VtpmQuote, ak: Public, nonce: bytes) -> Iterator[str]:
    quote = check_quote(ak, found.quote, found.signature, nonce)
    yield "vTPM quote: made by the AK's TPM, signed by the AK, carries the nonce"
    banks = {number: name for name, number in BANKS.items()}
    wanted = {banks.get(bank, str(bank)): numbers for bank, numbers in quote.pcr_select if numbers}
    if len(wanted) != len(found.pcrs) or any(tuple(found.pcrs.get(x, ())) != numbers for x, numbers in wanted.items()):
        raise EvidenceError("the vTPM's PCR values are not those of the PCRs that were quoted")
    values = b"".join(found.pcrs[bank][pcr] for bank, numbers in wanted.items() for pcr in numbers)
    if hashlib.new(_hash_of(found.signature), values).digest() != quote.digest:
        raise EvidenceError("the vTPM's PCR values are not what was quoted")
    told = ", ".join(f"{bank}:{','.join(map(str, numbers))}" for bank, numbers in wanted.items())
    yield f"vTPM PCRs: {told or 'none'} are as quoted"


def _hash_of(signature: bytes) -> str:
    """The digest over PCR values is made with the signature scheme's hash (Part 3, 18.4)."""
    number = int.from_bytes(signature[2:4])
    return next(name for name, each in BANKS.items() if each == number)


def _voucher(found: Bundle, binding: bytes, demand: Demand) -> str:
    sk = attestation_ca.verify_sk(found.voucher.chain[0], demand.authority)
    valid = x509.load_der_x509_certificate(found.voucher.chain[0])
    if not valid.not_valid_before_utc <= demand.now <= valid.not_valid_after_utc:
        raise EvidenceError("the SK's certificate is not valid now")
    for other in found.voucher.chain[1:]:
        attestation_ca.verify_authority(other, demand.authority)
    if len(found.voucher.signature) != 2 * COORDINATE_SIZE:
        raise EvidenceError("the voucher is no signature of an SK")
    r, s = (int.from_bytes(found.voucher.signature[at : at + COORDINATE_SIZE]) for at in (0, COORDINATE_SIZE))
    try:
        sk.verify(utils.encode_dss_signature(r, s), binding, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    except InvalidSignature:
        raise EvidenceError("the voucher is not for this vTPM, AK, quote and nonce") from None
    what = "the AK is in the vTPM with this EK" if found.quote is not None else "the vTPM with this EK is there"
    return f"voucher: an SK that the authority certified says that {what}"


def host_steps(
    host: Host, binding: bytes, authority: VerifyKey, expected: Mapping[int, bytes] | None = None
) -> Iterator[str]:
    """What the platform's part of a bundle proves of ``binding``, a line each; EvidenceError for what is not."""
    enrolled = platform.verify(host.statement, authority)
    yield f"platform: the authority has enrolled {enrolled.name!r} with this AK"
    expected_data = bundle.host_binding(binding, host.statement, host.approval, host.log)
    try:
        quote = check_quote(enrolled.ak, host.quote, host.signature, expected_data)
    except EvidenceError as error:
        raise EvidenceError(f"the platform's quote: {error}") from None
    yield "platform quote: made by the hardware TPM, signed by its AK, over the same vTPM, AK, quote and nonce"
    if quote.pcr_select != ((BANKS["sha256"], pcrs.BOUND_PCRS),) or tuple(host.pcrs) != pcrs.BOUND_PCRS:
        raise EvidenceError("the platform's quote is not over the SHA-256 PCRs 4, 9, 11, 12, 13")
    values = [host.pcrs[pcr] for pcr in pcrs.BOUND_PCRS]
    if hashlib.sha256(b"".join(values)).digest() != quote.digest or {len(each) for each in values} != {pcrs.PCR_SIZE}:
        raise EvidenceError("the platform's PCR values are not what was quoted")
    if any(any(host.pcrs[pcr]) for pcr in _ZERO_PCRS):
        raise EvidenceError("the platform's PCR 12 or 13 is not zero: something was added to the image from outside")
    yield "platform PCRs: as quoted; 12 and 13 are zero, nothing was added to the image from outside"
    yield _log(host)
    yield from _image(host, authority, expected)


def _log(host: Host) -> str:
    if not host.log:
        return "platform event log: there is none; the PCRs stand for themselves"
    events = event_log.parse(host.log)
    values = event_log.replay(events, pcrs.BOUND_PCRS)
    values[pcrs.CAPPED_PCR] = pcrs.after_phases(values[pcrs.CAPPED_PCR])
    for pcr, value in pcrs.serving(values).items():
        if value != host.pcrs[pcr]:
            raise EvidenceError(f"the event log does not lead to the quoted PCR {pcr}")
    return f"platform event log: its {len(events)} events, the phases of the boot and the cap lead to these PCRs"


def _image(host: Host, authority: VerifyKey, expected: Mapping[int, bytes] | None) -> Iterator[str]:
    if host.approval:
        approved = approval.verify(host.approval, authority)
        _demand_image(host, approved.pcrs, f"the image that the authority approved (number {approved.number})")
        yield f"image: the authority approved it (number {approved.number}, {approved.image!r}); its manager serves"
    elif expected is None:
        raise EvidenceError("no approval of this image is in the bundle; name its PCR values (--expect)")
    if expected is not None:
        _demand_image(host, expected, "the expected image")
        yield "image: its PCRs are the expected ones; its manager serves"


def _demand_image(host: Host, before_cap: Mapping[int, bytes], what: str) -> None:
    for pcr, value in pcrs.serving(dict(before_cap)).items():
        if host.pcrs.get(pcr) == value:
            continue
        if pcr == pcrs.CAPPED_PCR and host.pcrs.get(pcr) == before_cap[pcr]:
            raise EvidenceError(f"the platform's PCR 11 is not capped: no manager serves in {what}")
        raise EvidenceError(f"the platform's PCR {pcr} is not that of {what}")
