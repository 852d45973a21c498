"""What TPMs say of their keys and sign with them: TPMT_PUBLIC, TPMS_ATTEST, TPMT_SIGNATURE (TPM 2.0 Part 2).

Pure: bytes in, frozen values out. Every length is compared with what is left before anything is cut out, and nothing
may be left at the end. What cannot be read, or is no key that we know, is an EvidenceError.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from manager_vm.errors import EvidenceError
from manager_vm.trust.tpm_constants import Alg, Attributes, Type

MAX_SIZE = 4096  # bytes of any structure: a TPM's largest response
TPM_GENERATED_VALUE = 0xFF544347
_CLOCK_INFO_SIZE = 17  # bytes of TPMS_CLOCK_INFO (Part 2, 10.11.1)
_RSA_BITS = range(2048, 4097)
_RSA_DEFAULT_EXPONENT = 65537
_MAX_BANKS = 16

Key = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True)
class Public:
    """A key's public area. ``parameters``: its TPMU_PUBLIC_PARMS; ``area``: the TPMT_PUBLIC itself; ``name``: its Name.

    ``symmetric``: (algorithm, key bits, mode), zeros behind Alg.NULL. ``scheme``: (algorithm, hash), likewise.
    """

    alg: Alg
    name_alg: Alg
    attributes: Attributes
    policy: bytes
    symmetric: tuple[int, int, int]
    scheme: tuple[int, int]
    parameters: bytes
    key: Key
    area: bytes
    name: bytes


@dataclass(frozen=True, slots=True)
class Quote:
    """TPMS_QUOTE_INFO. ``pcr_select``: (hash algorithm, PCRs in ascending order) for each bank."""

    pcr_select: tuple[tuple[int, tuple[int, ...]], ...]
    digest: bytes


@dataclass(frozen=True, slots=True)
class Certify:
    """TPMS_CERTIFY_INFO."""

    name: bytes
    qualified_name: bytes


@dataclass(frozen=True, slots=True)
class NvCertify:
    """TPMS_NV_CERTIFY_INFO."""

    index_name: bytes
    offset: int
    contents: bytes


@dataclass(frozen=True, slots=True)
class Attest:
    """TPMS_ATTEST. ``clock_info``: TPMS_CLOCK_INFO. ``type`` says what ``attested`` is."""

    magic: int
    type: Type
    qualified_signer: bytes
    extra_data: bytes
    clock_info: bytes
    firmware: int
    attested: Quote | Certify | NvCertify


_HASHES: dict[int, tuple[str, type[hashes.HashAlgorithm]]] = {
    Alg.SHA256: ("sha256", hashes.SHA256),
    Alg.SHA384: ("sha384", hashes.SHA384),
    Alg.SHA512: ("sha512", hashes.SHA512),
}
_CURVES: dict[int, ec.EllipticCurve] = {0x0003: ec.SECP256R1(), 0x0004: ec.SECP384R1()}  # TPM_ECC_CURVE
_WITHOUT_HASH = (Alg.NULL, Alg.RSAES)


class _Reader:
    """Cuts a structure from its beginning; EvidenceError naming ``what`` where it is too short or goes on."""

    def __init__(self, data: bytes, what: str) -> None:
        if len(data) > MAX_SIZE:
            raise EvidenceError(f"{what} of {len(data)} bytes: no TPM makes one of more than {MAX_SIZE}")
        self._data = data
        self._what = what
        self.offset = 0

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self.offset:
            raise EvidenceError(f"{self._what} ends after {len(self._data)} bytes, in the middle of a field")
        self.offset += size
        return self._data[self.offset - size : self.offset]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def sized(self) -> bytes:
        """The buffer of a TPM2B."""
        return self.take(self.number(2))

    def end(self) -> None:
        if self.offset != len(self._data):
            raise EvidenceError(f"{self._what} goes on behind its end")

    def since(self, start: int) -> bytes:
        return self._data[start : self.offset]


def unwrap(data: bytes, what: str) -> bytes:
    """The buffer of a TPM2B that stands alone."""
    reader = _Reader(data, what)
    found = reader.sized()
    reader.end()
    return found


def parse_public(data: bytes) -> Public:
    """TPMT_PUBLIC of an RSA or ECC key (Part 2, 12.2.4)."""
    reader = _Reader(data, "a key's public area")
    alg, name_alg = reader.number(2), reader.number(2)
    if alg not in (Alg.RSA, Alg.ECC) or name_alg not in _HASHES:
        raise EvidenceError(f"a public area is of no kind that is known here (type 0x{alg:04x}, name 0x{name_alg:04x})")
    attributes, policy = Attributes(reader.number(4)), reader.sized()
    start = reader.offset
    symmetric = _symmetric(reader)
    scheme = _scheme(reader)
    make = _rsa if alg == Alg.RSA else _ecc
    unique = make(reader)
    parameters = reader.since(start)
    key = _checked(lambda: unique(reader))
    reader.end()
    name = struct.pack(">H", name_alg) + hashlib.new(_HASHES[name_alg][0], data).digest()
    return Public(Alg(alg), Alg(name_alg), attributes, policy, symmetric, scheme, parameters, key, data, name)


def parse_attest(data: bytes) -> Attest:
    """TPMS_ATTEST of a quote, a certified key or a certified NV index (Part 2, 10.12.8); only one that a TPM made."""
    reader = _Reader(data, "an attestation")
    magic, type_ = reader.number(4), reader.number(2)
    if magic != TPM_GENERATED_VALUE:
        raise EvidenceError("an attestation does not begin with TPM_GENERATED: no TPM has made it")
    if type_ not in _ATTESTED:
        raise EvidenceError(f"an attestation is of the type 0x{type_:04x}, which is not known here")
    signer, extra = reader.sized(), reader.sized()
    clock, firmware = reader.take(_CLOCK_INFO_SIZE), reader.number(8)
    attested = _ATTESTED[type_](reader)
    reader.end()
    return Attest(magic, Type(type_), signer, extra, clock, firmware, attested)


def verify_signature(public: Public, message: bytes, signature: bytes) -> None:
    """TPMT_SIGNATURE over ``message`` (for instance a TPMS_ATTEST) by this key; EvidenceError unless it is good."""
    reader = _Reader(signature, "a signature")
    scheme = (reader.number(2), reader.number(2))
    if public.scheme[0] not in (Alg.NULL, scheme[0]) or (public.scheme[0] != Alg.NULL and public.scheme != scheme):
        raise EvidenceError("a signature is of another scheme than the key's own")
    if scheme[1] not in _HASHES:
        raise EvidenceError(f"a signature is over a hash that is not known here (0x{scheme[1]:04x})")
    halves = [reader.sized() for _ in range(2 if scheme[0] == Alg.ECDSA else 1)]
    reader.end()
    hash_ = _HASHES[scheme[1]][1]()
    try:
        _verify(public.key, scheme[0], hash_, halves, message)
    except InvalidSignature:
        raise EvidenceError(f"a signature is not that of the key {public.name.hex()[:20]}...") from None


def _verify(key: Key, alg: int, hash_: hashes.HashAlgorithm, halves: list[bytes], message: bytes) -> None:
    if alg == Alg.ECDSA and isinstance(key, ec.EllipticCurvePublicKey):
        r, s = (int.from_bytes(half) for half in halves)
        key.verify(utils.encode_dss_signature(r, s), message, ec.ECDSA(hash_))
    elif alg == Alg.RSASSA and isinstance(key, rsa.RSAPublicKey):
        key.verify(halves[0], message, padding.PKCS1v15(), hash_)
    elif alg == Alg.RSAPSS and isinstance(key, rsa.RSAPublicKey):
        key.verify(halves[0], message, padding.PSS(padding.MGF1(hash_), padding.PSS.AUTO), hash_)
    else:
        raise EvidenceError(f"a signature is of the scheme 0x{alg:04x}, which its key cannot have")


def _symmetric(reader: _Reader) -> tuple[int, int, int]:
    """TPMT_SYM_DEF_OBJECT (Part 2, 11.1.7)."""
    alg = reader.number(2)
    return (alg, 0, 0) if alg == Alg.NULL else (alg, reader.number(2), reader.number(2))


def _scheme(reader: _Reader) -> tuple[int, int]:
    """TPMT_RSA_SCHEME, TPMT_ECC_SCHEME or TPMT_KDF_SCHEME of those that have a hash or nothing behind them."""
    alg = reader.number(2)
    return (alg, 0) if alg in _WITHOUT_HASH else (alg, reader.number(2))


def _rsa(reader: _Reader) -> Callable[[_Reader], Key]:
    """What TPMS_RSA_PARMS (from keyBits on) says of the unique field."""
    bits, exponent = reader.number(2), reader.number(4) or _RSA_DEFAULT_EXPONENT

    def unique(reader: _Reader) -> Key:
        modulus = int.from_bytes(reader.sized())
        if bits not in _RSA_BITS or modulus.bit_length() != bits:
            raise EvidenceError(f"an RSA key of {modulus.bit_length()} bits where {bits} are said: it is none of a TPM")
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()

    return unique


def _ecc(reader: _Reader) -> Callable[[_Reader], Key]:
    """What TPMS_ECC_PARMS (from curveID on) says of the unique field."""
    curve = _CURVES.get(reader.number(2))
    _scheme(reader)  # the KDF's
    if curve is None:
        raise EvidenceError("an ECC key is on a curve that is not known here")

    def unique(reader: _Reader) -> Key:
        x, y = reader.sized(), reader.sized()
        return ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), curve).public_key()

    return unique


def _checked(make: Callable[[], Key]) -> Key:
    try:
        return make()
    except ValueError as error:
        raise EvidenceError(f"a public area holds no key ({error})") from None


def _quote(reader: _Reader) -> Quote:
    count = reader.number(4)
    if count > _MAX_BANKS:
        raise EvidenceError(f"a quote over {count} PCR banks: no TPM has so many")
    banks = []
    for _ in range(count):
        bank, bits = reader.number(2), int.from_bytes(reader.take(reader.number(1)), "little")
        banks.append((bank, tuple(pcr for pcr in range(bits.bit_length()) if bits >> pcr & 1)))
    return Quote(tuple(banks), reader.sized())


_ATTESTED: dict[int, Callable[[_Reader], Quote | Certify | NvCertify]] = {
    Type.QUOTE: _quote,
    Type.CERTIFY: lambda reader: Certify(reader.sized(), reader.sized()),
    Type.NV: lambda reader: NvCertify(reader.sized(), reader.number(2), reader.sized()),
}
