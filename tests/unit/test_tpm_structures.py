"""TPM structures as a real swtpm made them; and every byte of them changed, cut off and added to."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from manager_vm.errors import EvidenceError
from manager_vm.trust import tpm_structures as tpm
from manager_vm.trust.tpm_constants import Alg, Attributes, Type
from manager_vm.trust.tpm_structures import Certify, NvCertify, Quote
from tests.unit.statements import flipped

AK = bytes.fromhex(
    "0023000b00050472000000100018000b00030010002010b836db090408103271548b6dcfb238c2fc96fd1b3537fe12cc8a3be890"
    "950a00206b3f688070b89a10c69e52504668f94f7834cb8210b8cd97c5f0754243ffcf16"
)
SK_2B = bytes.fromhex(
    "00580023000b00040472000000100018000b000300100020d5a2f652d08256a6514b1b174a7dd94bfebfa211c423abc7c8c808d6"
    "729139ab002012b27dc132411c16a26b4434f84f9b3dbae7258d440de46cf9d876877f17d0ca"
)
CERTIFY = bytes.fromhex(
    "ff54434780170022000bb8a5e9948134711de4929947dfb01d9d011d8a37000833a7b5df40d87fdf12cb00056e6f6e6365000000"
    "000000015e15b516cec439daf501e9d3f14350537d110022000bcb8f818fdec461650f6424f2cf922bc83ce9de8baf34ec6254b4"
    "8b280e8ba8490022000bdebc4838adc8588597ea8ca306c1e092ba70df217d606438f2c9e240617d853e"
)
CERTIFY_SIGNATURE = bytes.fromhex(
    "0018000b00202a653544c66526c920ba71c68ebe5c27df0e4420e64d8a7467078e4c42354d1a0020ed70b316ebb5b5774e49f577"
    "f8efcd63286941dff4ee489a21d94882ea201f38"
)
QUOTE = bytes.fromhex(
    "ff54434780180022000bb8a5e9948134711de4929947dfb01d9d011d8a37000833a7b5df40d87fdf12cb00056e6f6e6365000000"
    "000000017115b516cec439daf501e9d3f14350537d1100000001000b03100a0000202ea9ab9198d1638007400cd2c3bef1cc745b"
    "864b76011a0e1bc52180ac6452d4"
)
QUOTE_SIGNATURE = bytes.fromhex(
    "0018000b0020da55ab483d90bcd1fc6a060ceb3117e84b9e6439b06bd02d22ced15018d8dddd002033decd0b2544a6c69d93989d"
    "e86de7127aca0515e50f67011f8ce541a0669d85"
)
EK_RSA = bytes.fromhex(
    "0001000b000300b20020837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa00060080004300100800"
    "000000000100f534431a54c704391dda6cf3c8d8cc7917d03fd97dc3249ea396e32d52b2f9cb74eed25df3757a7d8fbd0a682934"
    "80ddae3e753605269bf43cf0f2babc7b29c238bfbee827cafff96a17b7acb41a75ad078f48b6069fa9d651debf53cc72db93e499"
    "bed71f10755d6079786812c96c2c1489e5d7cb50c04255694d38aa26324c921c6b59369fb353a191c57712a58425361003e26fb1"
    "5aa1276a7c0310c34ba7ead43366a8da50c4c4a789a85a16c826136c513a7398d147a32adc159db8d42092c85d1383f2f58d2bf9"
    "9d61c269d50b4a5ed2540ed85964ba2bf0796f723446b84c473f5aa179fb3548034a2034b72765b539746ce7ed6fe43a90419185"
    "2f7d"
)
EK_P256 = bytes.fromhex(
    "0023000b000300b20020837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa00060080004300100003"
    "00100020b8f8ad9c5ed6a99a20e3c116326363fd11ec8865c4a0f46d3ee1dc0839447325002065d7dc06a319acc870cfed16de5e"
    "a50a1fa9f23a78f94e3fbba897ff6e7b7608"
)
EK_P384 = bytes.fromhex(
    "0023000c000300f20030b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9f"
    "c000f3f80e120006010000430010000400100030272e9e5ba1676f52e1ded15f30ac2fd9821e2ce77d94d9c94b43c7fea5f08e97"
    "6e863d6368d7ed4268cb60d82365e1f7003052792c9a0784dec72f1e5482383c6096e4ee560395415c4dc5ad55d3343a25afd9a6"
    "75291847379e86f19004f316b1b8"
)
SK = SK_2B[2:]
SIGNING = (
    Attributes.FIXED_TPM
    | Attributes.FIXED_PARENT
    | Attributes.SENSITIVE_DATA_ORIGIN
    | Attributes.USER_WITH_AUTH
    | Attributes.NO_DA
    | Attributes.SIGN_ENCRYPT
)


def test_public_areas_of_a_real_tpm_are_read_with_their_names() -> None:
    ak, sk = tpm.parse_public(AK), tpm.parse_public(SK)
    assert ak.attributes == SIGNING | Attributes.RESTRICTED and sk.attributes == SIGNING
    assert (ak.alg, ak.name_alg, ak.policy, ak.scheme) == (Alg.ECC, Alg.SHA256, b"", (Alg.ECDSA, Alg.SHA256))
    assert ak.name == b"\0\x0b" + hashlib.sha256(AK).digest() and ak.area == AK
    assert isinstance(ak.key, ec.EllipticCurvePublicKey) and isinstance(ak.key.curve, ec.SECP256R1)


@pytest.mark.parametrize(
    ("area", "size", "symmetric", "name_alg"),
    [
        (EK_RSA, 2048, (Alg.AES, 128, Alg.CFB), Alg.SHA256),
        (EK_P256, 256, (Alg.AES, 128, Alg.CFB), Alg.SHA256),
        (EK_P384, 384, (Alg.AES, 256, Alg.CFB), Alg.SHA384),
    ],
)
def test_endorsement_keys_of_all_three_kinds_are_read(
    area: bytes, size: int, symmetric: tuple[int, int, int], name_alg: Alg
) -> None:
    found = tpm.parse_public(area)
    assert (found.key.key_size, found.symmetric, found.name_alg, found.scheme) == (size, symmetric, name_alg, (16, 0))
    assert Attributes.RESTRICTED | Attributes.DECRYPT in found.attributes
    assert found.parameters in area


def test_a_certified_key_and_a_quote_of_a_real_tpm_are_read_and_their_signatures_are_good() -> None:
    ak, sk = tpm.parse_public(AK), tpm.parse_public(tpm.unwrap(SK_2B, "an SK"))
    certified, quoted = tpm.parse_attest(CERTIFY), tpm.parse_attest(QUOTE)
    assert (certified.type, certified.extra_data, certified.magic) == (Type.CERTIFY, b"nonce", 0xFF544347)
    assert isinstance(certified.attested, Certify) and certified.attested.name == sk.name
    assert isinstance(quoted.attested, Quote) and quoted.attested.pcr_select == ((Alg.SHA256, (4, 9, 11)),)
    assert len(quoted.attested.digest) == 32 and quoted.qualified_signer == certified.qualified_signer
    assert (len(quoted.clock_info), quoted.firmware) != (0, 0)
    tpm.verify_signature(ak, CERTIFY, CERTIFY_SIGNATURE)
    tpm.verify_signature(ak, QUOTE, QUOTE_SIGNATURE)
    with pytest.raises(EvidenceError, match="is not that of the key"):
        tpm.verify_signature(sk, CERTIFY, CERTIFY_SIGNATURE)
    with pytest.raises(EvidenceError, match="is not that of the key"):
        tpm.verify_signature(ak, QUOTE, CERTIFY_SIGNATURE)


def test_a_certified_nv_index_is_read() -> None:
    head = CERTIFY[:4] + struct.pack(">H", Type.NV) + bytes(2 + 2 + 17 + 8)
    found = tpm.parse_attest(head + b"\0\x02ab" + b"\0\x07" + b"\0\x03xyz")
    assert found.attested == NvCertify(b"ab", 7, b"xyz")


def test_a_signature_with_any_bit_changed_is_not_good() -> None:
    ak = tpm.parse_public(AK)
    for signature in flipped(CERTIFY_SIGNATURE):
        with pytest.raises(EvidenceError):
            tpm.verify_signature(ak, CERTIFY, signature)
    for message in flipped(CERTIFY):
        with pytest.raises(EvidenceError):
            tpm.verify_signature(ak, message, CERTIFY_SIGNATURE)


def test_a_public_area_with_any_bit_changed_is_refused_or_has_another_name() -> None:
    for area in flipped(AK):
        try:
            assert tpm.parse_public(area).name != tpm.parse_public(AK).name
        except EvidenceError:
            continue


def parts(data: bytes) -> Iterator[bytes]:
    yield from (data[:end] for end in range(len(data)))
    yield data + b"\0"


def test_a_structure_that_is_cut_off_anywhere_or_goes_on_is_refused() -> None:
    for area in (AK, EK_RSA, EK_P256, EK_P384):
        for part in parts(area):
            with pytest.raises(EvidenceError):
                tpm.parse_public(part)
    for attest in (CERTIFY, QUOTE):
        for part in parts(attest):
            with pytest.raises(EvidenceError):
                tpm.parse_attest(part)
    for part in parts(CERTIFY_SIGNATURE):
        with pytest.raises(EvidenceError):
            tpm.verify_signature(tpm.parse_public(AK), CERTIFY, part)
    for part in parts(SK_2B):
        with pytest.raises(EvidenceError):
            tpm.unwrap(part, "an SK")


@given(st.binary(max_size=400))
def test_nothing_but_an_evidence_error_comes_of_any_bytes(data: bytes) -> None:
    for read in (
        tpm.parse_public,
        tpm.parse_attest,
        lambda data: tpm.verify_signature(tpm.parse_public(AK), b"", data),
    ):
        for prefix in (b"", AK[:10], EK_RSA[:60], QUOTE[:6], CERTIFY_SIGNATURE[:4]):
            with pytest.raises(EvidenceError):
                read(prefix + data)


@pytest.mark.parametrize(
    ("read", "data", "text"),
    [
        (tpm.parse_public, b"\0\x08" + AK[2:], "no kind that is known"),
        (tpm.parse_public, AK[:2] + b"\0\x04" + AK[4:], "no kind that is known"),
        (tpm.parse_public, AK[:16] + b"\0\x10" + AK[18:], "no kind|holds no key|middle|curve"),
        (tpm.parse_public, AK[:-1] + bytes([AK[-1] ^ 1]), "holds no key"),
        (tpm.parse_public, AK.replace(b"\0\x03\0\x10", b"\0\x05\0\x10"), "curve"),
        (tpm.parse_public, EK_RSA.replace(b"\x08\0\0\0", b"\x04\0\0\0"), "RSA key of 2048 bits where 1024"),
        (tpm.parse_public, bytes(5000), "no TPM makes one"),
        (tpm.parse_attest, b"\0" + QUOTE[1:], "TPM_GENERATED"),
        (tpm.parse_attest, QUOTE[:4] + b"\x80\x19" + QUOTE[6:], "type 0x8019"),
        (tpm.parse_attest, QUOTE.replace(b"\0\0\0\x01\0\x0b", b"\0\0\xff\xff\0\x0b"), "no TPM has so many"),
    ],
)
def test_what_no_tpm_of_ours_says_is_refused_with_the_reason(read: object, data: bytes, text: str) -> None:
    assert callable(read)
    with pytest.raises(EvidenceError, match=text):
        read(data)


@dataclass(frozen=True)
class Rsa:
    """A guest's RSA attestation key, in software."""

    key: rsa.RSAPrivateKey
    scheme: int = Alg.NULL

    @property
    def public(self) -> tpm.Public:
        numbers = self.key.public_key().public_numbers()
        scheme = struct.pack(">H", self.scheme) + (struct.pack(">H", Alg.SHA256) if self.scheme != Alg.NULL else b"")
        head = struct.pack(">HHIHH", Alg.RSA, Alg.SHA256, SIGNING, 0, Alg.NULL) + scheme
        return tpm.parse_public(head + struct.pack(">HIH", 2048, 0, 256) + numbers.n.to_bytes(256))

    def sign(self, alg: int, message: bytes) -> bytes:
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
        made = self.key.sign(message, pss if alg == Alg.RSAPSS else padding.PKCS1v15(), hashes.SHA256())
        return struct.pack(">HHH", alg, Alg.SHA256, len(made)) + made


def test_signatures_of_rsa_keys_are_verified_in_the_scheme_of_the_key() -> None:
    key = rsa.generate_private_key(65537, 2048)
    for alg in (Alg.RSASSA, Alg.RSAPSS):
        signature = Rsa(key).sign(alg, b"message")
        tpm.verify_signature(Rsa(key).public, b"message", signature)
        tpm.verify_signature(Rsa(key, alg).public, b"message", signature)
        with pytest.raises(EvidenceError, match="is not that of the key"):
            tpm.verify_signature(Rsa(key).public, b"Message", signature)
    with pytest.raises(EvidenceError, match="another scheme"):
        tpm.verify_signature(Rsa(key, Alg.RSAPSS).public, b"message", Rsa(key).sign(Alg.RSASSA, b"message"))
    with pytest.raises(EvidenceError, match="cannot have"):
        tpm.verify_signature(Rsa(key).public, CERTIFY, CERTIFY_SIGNATURE)
    with pytest.raises(EvidenceError, match="hash that is not known"):
        tpm.verify_signature(tpm.parse_public(EK_P256), b"", struct.pack(">HH", Alg.ECDSA, 4) + CERTIFY_SIGNATURE[4:])
