"""Enrolment without a TPM: every field of evidence, challenge, answer, statement and certificate changed."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID, ObjectIdentifier

from manager_vm.errors import ConfigError, EvidenceError
from manager_vm.keys.ek_ca import EkCa
from manager_vm.trust import attestation_ca, enrolment, envelope, evidence, platform, tpm_structures
from manager_vm.trust.authority import AuthorityDirectory
from manager_vm.trust.enrolment import CertifiedKey, Pending
from manager_vm.trust.register import Register
from manager_vm.trust.signing import SigningKey
from manager_vm.trust.tpm_constants import Alg, Attributes, Type
from tests import unlinkable_sks
from tests.unit import software_tpm
from tests.unit.software_tpm import AK, SK
from tests.unit.statements import AUTHORITY, STRANGER, body_of, forgeries

NOW = datetime.datetime.now(datetime.UTC).replace(minute=0, second=0, microsecond=0)
EK_KEY, AK_KEY, SK_KEY, OTHER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(4))
VENDOR = EkCa.create("vendor")
VENDORS = x509.load_pem_x509_certificates(VENDOR.pem)
EK, AK_AREA = software_tpm.ek(EK_KEY), software_tpm.signing(AK_KEY, AK)
CERTIFICATE = VENDOR.issue(EK_KEY.public_key())
EVIDENCE = evidence.pack(CERTIFICATE, EK.area, AK_AREA)
NONCE, SECRET = bytes(range(32)), bytes(range(1, 33))


def test_good_evidence_says_whose_tpm_and_which_ak() -> None:
    found = evidence.verify(EVIDENCE, VENDORS, datetime.datetime.now(datetime.UTC))
    assert (found.kind, found.ek.area, found.ak.area) == ("ecc-p256", EK.area, AK_AREA)
    assert found.ek_digest == hashlib.sha256(CERTIFICATE).digest()
    rsa_key = rsa.generate_private_key(65537, 2048)
    area = software_tpm.ek(rsa_key).area
    said = evidence.pack(VENDOR.issue(rsa_key.public_key()), area, AK_AREA)
    assert evidence.verify(said, VENDORS, datetime.datetime.now(datetime.UTC)).kind == "rsa2048"


def with_field(data: bytes, **fields: Any) -> bytes:
    return json.dumps({**json.loads(data), **fields}).encode()


def refused(data: bytes, text: str, now: datetime.datetime | None = None) -> None:
    with pytest.raises(EvidenceError, match=text):
        evidence.verify(data, VENDORS, now or datetime.datetime.now(datetime.UTC))


@pytest.mark.parametrize("field", ["ek_certificate", "ek", "ak"])
def test_evidence_without_a_field_or_with_something_else_in_it_is_refused(field: str) -> None:
    said = json.loads(EVIDENCE)
    values: list[Any] = [None, 7, "", "zz", [], {}, "00" * 20_000]
    for value in values:
        refused(with_field(EVIDENCE, **{field: value}), ".")
    del said[field]
    refused(json.dumps(said).encode(), f"lacks '{field}'")
    for junk in (b"", b"[]", b"{", b"\xff", json.dumps([said]).encode()):
        refused(junk, "no platform evidence")


def test_evidence_with_any_byte_changed_is_refused_or_says_nothing_else() -> None:
    """The AK's own coordinates are for the challenge: evidence is not signed."""
    for field, value in (("ek_certificate", CERTIFICATE), ("ek", EK.area)):
        for index in range(len(value)):
            other = value[:index] + bytes([value[index] ^ 0x41]) + value[index + 1 :]
            refused(with_field(EVIDENCE, **{field: other.hex()}), ".")


def certified(**changes: Any) -> bytes:
    """An EK's certificate of the vendor, other than it should be."""
    ca_key = serialization.load_der_private_key(VENDOR.private_bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    usage = changes.get("usage", [ObjectIdentifier("2.23.133.8.1")])
    start, end = changes.get("valid", (NOW - datetime.timedelta(days=1), NOW + datetime.timedelta(days=1)))
    builder = x509.CertificateBuilder().serial_number(1).not_valid_before(start).not_valid_after(end)
    builder = builder.subject_name(x509.Name([])).issuer_name(changes.get("issuer", VENDORS[0].subject))
    builder = builder.public_key(changes.get("key", EK_KEY.public_key()))
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
    if changes.get("ca"):
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    made = builder.sign(changes.get("signer", ca_key), hashes.SHA256())
    return made.public_bytes(serialization.Encoding.DER)


LATER = (NOW + datetime.timedelta(days=1), NOW + datetime.timedelta(days=2))
EARLIER = (NOW - datetime.timedelta(days=2), NOW - datetime.timedelta(days=1))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"usage": []}, "not one of an EK"),
        ({"usage": [ObjectIdentifier("2.23.133.8.3")]}, "not one of an EK"),
        ({"ca": True}, "one of a CA"),
        ({"valid": LATER}, "the EK's certificate is valid from"),
        ({"valid": EARLIER}, "the EK's certificate is valid from"),
        ({"key": OTHER.public_key()}, "for another key"),
        ({"key": ec.generate_private_key(ec.SECP384R1()).public_key()}, "for another key"),
        ({"signer": OTHER}, "not signed by a vendor"),
        ({"issuer": x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])}, "not signed by a vendor"),
    ],
)
def test_an_ek_certificate_that_is_not_what_it_must_be_is_refused(changes: dict[str, Any], text: str) -> None:
    assert evidence.verify(evidence.pack(certified(), EK.area, AK_AREA), VENDORS, NOW).kind == "ecc-p256"
    refused(evidence.pack(certified(**changes), EK.area, AK_AREA), text, NOW)


def test_a_vendor_who_is_none_or_whose_time_is_over_vouches_for_nobody(tmp_path: Path) -> None:
    refused(EVIDENCE, "the vendor's certificate is valid from", NOW.replace(year=2090))
    with pytest.raises(EvidenceError, match="not signed by a vendor"):
        evidence.verify(EVIDENCE, [], NOW)
    with pytest.raises(EvidenceError, match="not signed by a vendor"):
        evidence.verify(EVIDENCE, x509.load_pem_x509_certificates(EkCa.create("vendor").pem), NOW)
    for content in (b"", b"junk", SigningKey.create().public.pem):
        (tmp_path / "ca.pem").write_bytes(content)
        with pytest.raises(ConfigError, match="holds no certificate"):
            evidence.load_vendors(tmp_path / "ca.pem")
    with pytest.raises(ConfigError, match="cannot read"):
        evidence.load_vendors(tmp_path / "none")
    (tmp_path / "ca.pem").write_bytes(EkCa.create("other").pem + VENDOR.pem)
    assert evidence.verify(EVIDENCE, evidence.load_vendors(tmp_path / "ca.pem"), datetime.datetime.now(datetime.UTC))


def test_an_issuer_that_is_no_ca_is_refused() -> None:
    leaf = x509.load_der_x509_certificate(certified(key=OTHER.public_key(), usage=[]))
    made = certified(signer=OTHER, issuer=leaf.subject)
    with pytest.raises(EvidenceError, match="not that of a CA"):
        evidence.verify(evidence.pack(made, EK.area, AK_AREA), [leaf], NOW)


@pytest.mark.parametrize("bit", range(32))
@pytest.mark.parametrize(("check", "needed"), [(platform.check_ak, AK), (platform.check_sk, SK)], ids=["ak", "sk"])
def test_a_key_has_the_attributes_that_it_must_have_and_no_others(check: Any, needed: Attributes, bit: int) -> None:
    changed = tpm_structures.parse_public(software_tpm.signing(AK_KEY, needed ^ Attributes(1 << bit)))
    if Attributes(1 << bit) in Attributes.USER_WITH_AUTH | Attributes.NO_DA:
        check(changed)
        return
    with pytest.raises(EvidenceError, match="lacks" if Attributes(1 << bit) in needed else "which an"):
        check(changed)


def test_a_key_of_another_kind_is_no_attestation_key() -> None:
    p384 = ec.generate_private_key(ec.SECP384R1())
    for area in (
        software_tpm.signing(p384, AK),
        software_tpm.signing(AK_KEY, AK, name_alg=Alg.SHA384),
        software_tpm.signing(AK_KEY, AK, scheme=(Alg.NULL, 0)),
        software_tpm.signing(AK_KEY, AK, scheme=(Alg.ECDSA, Alg.SHA384)),
    ):
        with pytest.raises(EvidenceError, match="not of the kind ECDSA P-256"):
            platform.check_ak(tpm_structures.parse_public(area))
    with pytest.raises(EvidenceError, match="has a policy"):
        platform.check_ak(tpm_structures.parse_public(software_tpm.signing(AK_KEY, AK, policy=bytes(32))))


# -- the statement ------------------------------------------------------------------------------------------------

STATEMENT = platform.enrol("rack7", tpm_structures.parse_public(AK_AREA), bytes(32), 3, AUTHORITY)


def test_a_platform_statement_says_what_was_signed() -> None:
    found = platform.verify(STATEMENT, AUTHORITY.public)
    assert (found.name, found.serial, found.ek, found.ak.area) == ("rack7", 3, bytes(32), AK_AREA)
    with pytest.raises(EvidenceError, match="not signed by anybody"):
        platform.verify(STATEMENT, STRANGER.public)
    with pytest.raises(ConfigError, match="no platform's name"):
        platform.enrol("a b", found.ak, bytes(32), 1, AUTHORITY)


def test_a_statement_or_challenge_with_any_bit_changed_is_refused() -> None:
    for _, forged in forgeries(STATEMENT):
        with pytest.raises(EvidenceError):
            platform.verify(forged, AUTHORITY.public)


@pytest.mark.parametrize(
    "changes",
    [{"name": ""}, {"name": 1}, {"serial": 0}, {"serial": True}, {"serial": "1"}, {"ek": "00"}, {"ek": None},
     {"ak": "00"}, {"ak": None}, {"ak": software_tpm.signing(AK_KEY, SK).hex()}],
)  # fmt: skip
def test_a_signed_statement_of_another_version_is_refused(changes: dict[str, Any]) -> None:
    body = envelope.peek(platform.PLATFORM, STATEMENT) | changes
    with pytest.raises(EvidenceError):
        platform.verify(envelope.sign(platform.PLATFORM, body, AUTHORITY), AUTHORITY.public)


# -- challenge and answer -------------------------------------------------------------------------------------------

FOUND = evidence.verify(EVIDENCE, VENDORS, datetime.datetime.now(datetime.UTC))
CHALLENGE = enrolment.challenge("0" * 32, "rack7", FOUND, SECRET, NONCE, AUTHORITY)
PENDING = Pending("rack7", AK_AREA, FOUND.ek_digest, NONCE, hashlib.sha256(SECRET).digest())


def certified_key(area: bytes, **changes: Any) -> CertifiedKey:
    name = tpm_structures.parse_public(area).name
    attested = software_tpm.certify(changes.get("name", name), changes.get("extra", enrolment.qualifying_data(NONCE)))
    attested = changes.get("attested", attested)
    return CertifiedKey(area, attested, software_tpm.sign(changes.get("signer", AK_KEY), attested))


SK_AREA = software_tpm.signing(SK_KEY, SK)
GOOD = certified_key(SK_AREA)


def test_a_challenge_is_opened_by_the_tpm_that_it_is_for_and_its_answer_is_good() -> None:
    found = enrolment.verify_challenge(CHALLENGE, AUTHORITY.public)
    assert (found.id, found.kind, found.nonce) == ("0" * 32, "ecc-p256", NONCE)
    assert software_tpm.opened(EK_KEY, found.credential, found.ak) == SECRET
    (key,) = enrolment.verify_answer(enrolment.answer(found.id, SECRET, [GOOD]), PENDING)
    assert key.area == SK_AREA
    assert enrolment.unpack_pending(enrolment.pack_pending(PENDING)) == PENDING


@pytest.mark.parametrize(
    "changes",
    [{"id": "0"}, {"id": "../" + "0" * 29}, {"kind": "ecc-p384"}, {"kind": []}, {"ak": 1}, {"credential": None},
     {"secret": "x"}, {"nonce": "00"}, {"nonce": None}],
)  # fmt: skip
def test_a_signed_challenge_of_another_version_is_refused(changes: dict[str, Any]) -> None:
    body = envelope.peek(enrolment.CHALLENGE, CHALLENGE) | changes
    with pytest.raises(EvidenceError):
        enrolment.verify_challenge(envelope.sign(enrolment.CHALLENGE, body, AUTHORITY), AUTHORITY.public)
    with pytest.raises(EvidenceError, match="not signed by anybody"):
        enrolment.verify_challenge(CHALLENGE, STRANGER.public)


QUOTED = software_tpm.attest(Type.QUOTE, enrolment.qualifying_data(NONCE), bytes(4) + b"\0\x20" + bytes(32))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (certified_key(SK_AREA, name=b"\0\x0b" + bytes(32)), "another key"),
        (certified_key(SK_AREA, extra=NONCE), "not for this challenge"),
        (certified_key(SK_AREA, extra=enrolment.qualifying_data(SECRET)), "not for this challenge"),
        (certified_key(SK_AREA, extra=b""), "not for this challenge"),
        (certified_key(SK_AREA, signer=OTHER), "is not that of the key"),
        (certified_key(SK_AREA, attested=QUOTED), "not that it certifies"),
        (certified_key(SK_AREA, attested=b"\0" + GOOD.attested[1:]), "TPM_GENERATED"),
        (certified_key(software_tpm.signing(SK_KEY, AK)), "RESTRICTED"),
        (certified_key(software_tpm.signing(SK_KEY, SK & ~Attributes.FIXED_TPM)), "lacks FIXED_TPM"),
        (certified_key(software_tpm.signing(SK_KEY, SK | Attributes.DECRYPT)), "DECRYPT"),
        (replace(GOOD, public=software_tpm.signing(OTHER, SK)), "another key"),
    ],
)
def test_an_sk_that_the_ak_does_not_vouch_for_is_refused(key: CertifiedKey, text: str) -> None:
    with pytest.raises(EvidenceError, match=text):
        enrolment.verify_answer(enrolment.answer("0" * 32, SECRET, [key]), PENDING)


def changed_bytes(data: bytes) -> Iterator[bytes]:
    yield from (data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :] for i in range(len(data)))


def test_an_answer_with_any_byte_changed_is_refused() -> None:
    keys = [
        replace(GOOD, **{part: each}) for part in CertifiedKey.__slots__ for each in changed_bytes(getattr(GOOD, part))
    ]
    for said in (
        *(enrolment.answer("0" * 32, secret, [GOOD]) for secret in changed_bytes(SECRET)),
        *(enrolment.answer("0" * 32, SECRET, [key]) for key in keys),
    ):
        with pytest.raises(EvidenceError):
            enrolment.verify_answer(said, PENDING)


@pytest.mark.parametrize("keys", [None, 1, {}, [1], [{}], [{"public": "00"}], [{"public": 1, "x": 2}]])
def test_what_is_no_answer_is_refused(keys: Any) -> None:
    with pytest.raises(EvidenceError):
        enrolment.verify_answer(with_field(enrolment.answer("0" * 32, SECRET, []), keys=keys), PENDING)
    for id_ in (None, "", "x" * 32, "../../etc/passwd", 7):
        with pytest.raises(EvidenceError, match="names none"):
            enrolment.challenge_of(json.dumps({"challenge": id_}).encode())


# -- certificates ---------------------------------------------------------------------------------------------------


def test_certificates_of_one_month_differ_in_nothing_that_links() -> None:
    keys = [ec.generate_private_key(ec.SECP256R1()).public_key() for _ in range(12)]
    made = [attestation_ca.certify_sk(key, AUTHORITY, NOW.replace(day=1 + day)) for day, key in enumerate(keys)]
    assert unlinkable_sks.linking([made[:6], made[6:]]) == []
    found = x509.load_der_x509_certificate(made[0])
    assert found.not_valid_before_utc == NOW.replace(day=1, hour=0)
    assert found.not_valid_after_utc == NOW.replace(day=1, hour=0, year=NOW.year + 10)
    assert [attestation_ca.verify_sk(der, AUTHORITY.public) for der in made] == keys
    found.verify_directly_issued_by(attestation_ca.certify_authority(AUTHORITY, NOW))


def test_a_certificate_with_any_byte_changed_or_of_another_use_is_refused() -> None:
    der = attestation_ca.certify_sk(SK_KEY.public_key(), AUTHORITY, NOW)
    own = attestation_ca.certify_authority(AUTHORITY, NOW).public_bytes(serialization.Encoding.DER)
    attestation_ca.verify_authority(own, AUTHORITY.public)
    for check, data in ((attestation_ca.verify_sk, der), (attestation_ca.verify_authority, own)):
        for other in changed_bytes(data):
            with pytest.raises(EvidenceError):
                check(other, AUTHORITY.public)
        with pytest.raises(EvidenceError, match="is not signed by key"):
            check(data, STRANGER.public)
    with pytest.raises(EvidenceError, match="another use"):
        attestation_ca.verify_sk(own, AUTHORITY.public)
    with pytest.raises(EvidenceError, match="another key or name"):
        attestation_ca.verify_authority(der, AUTHORITY.public)


# -- the whole enrolment, and the register --------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> AuthorityDirectory:
    return AuthorityDirectory.init(tmp_path / "authority")


def answered(register: Register, name: str, key: CertifiedKey | None = None) -> bytes:
    """A good answer to a new challenge."""
    _, challenge = register.challenge(name, EVIDENCE, VENDORS)
    found = enrolment.verify_challenge(challenge, register._authority.public)
    secret = software_tpm.opened(EK_KEY, found.credential, found.ak)
    keys = [key or certified_key(SK_AREA, extra=enrolment.qualifying_data(found.nonce))]
    return enrolment.answer(found.id, secret, keys)


def test_an_answer_is_used_once_and_what_was_issued_is_good_and_kept(authority: AuthorityDirectory) -> None:
    register = Register(authority)
    said = answered(register, "rack7")
    made, keys, issued = register.enrol(said)
    found = enrolment.verify(issued, authority.public)
    assert (made.name, made.serial, found.platform) == ("rack7", 1, made)
    assert [key.area for key in keys] == [SK_AREA] and found.certificates[0][0] == SK_KEY.public_key()
    assert (authority.path / "enrolments/1.json").read_bytes() == issued
    assert register.platforms() == {"rack7": made}
    with pytest.raises(EvidenceError, match="waits for no such answer"):
        register.enrol(said)
    assert register.enrol(answered(register, "rack7"))[0].serial == 2
    for name, text in (("other", "rack7 has this TPM"), ("a/b", "no platform's name")):
        with pytest.raises(ConfigError, match=text):
            register.challenge(name, EVIDENCE, VENDORS)


def test_a_wrong_answer_leaves_the_challenge_open(authority: AuthorityDirectory) -> None:
    register = Register(authority)
    said = answered(register, "rack7")
    with pytest.raises(EvidenceError, match="has not the credential's secret"):
        register.enrol(with_field(said, secret=bytes(32).hex()))
    with pytest.raises(EvidenceError, match="waits for no such answer"):
        register.enrol(with_field(said, challenge=os.urandom(16).hex()))
    assert register.platforms() == {}
    assert register.enrol(said)[0].name == "rack7"


def test_an_enrolment_with_any_part_of_another_is_refused(authority: AuthorityDirectory, tmp_path: Path) -> None:
    register = Register(authority)
    issued = register.enrol(answered(register, "rack7"))[2]
    other = AuthorityDirectory.init(tmp_path / "other")
    foreign = Register(other).enrol(answered(Register(other), "rack7"))[2]
    theirs = json.loads(foreign)
    for part in ("platform", "authority", "certificates"):
        with pytest.raises(EvidenceError):
            enrolment.verify(with_field(issued, **{part: theirs[part]}), authority.public)
        values: list[Any] = [None, 7, "", [7], ["zz"], {}]
        for value in values:
            with pytest.raises(EvidenceError):
                enrolment.verify(with_field(issued, **{part: value}), authority.public)
    with pytest.raises(EvidenceError):
        enrolment.verify(foreign, authority.public)
    with pytest.raises(EvidenceError):
        enrolment.verify(with_field(issued, certificates=["00"] * 201), authority.public)


@pytest.mark.parametrize("level", [-1, 256])
def test_no_platform_has_a_trust_level_beyond_the_scale(level: int) -> None:
    with pytest.raises(ConfigError):
        platform.enrol("rack7", tpm_structures.parse_public(AK_AREA), FOUND.ek_digest, 1, AUTHORITY, level=level)


@pytest.mark.parametrize("level", [-1, 256, True, "3", None])
def test_a_platform_statement_without_a_trust_level_is_refused(level: object) -> None:
    said = platform.enrol("rack7", tpm_structures.parse_public(AK_AREA), FOUND.ek_digest, 1, AUTHORITY, level=255)
    assert platform.verify(said, AUTHORITY.public).level == 255
    changed = envelope.sign(platform.PLATFORM, {**body_of(platform.PLATFORM, said), "level": level}, AUTHORITY)
    with pytest.raises(EvidenceError):
        platform.verify(changed, AUTHORITY.public)
