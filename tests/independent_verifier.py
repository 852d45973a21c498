"""A second verifier of evidence, written from manager_vm/trust/EVIDENCE.md alone: it shares no code with the product.

Standard library, ``cryptography`` and tpm2_checkquote only. Arguments: BUNDLE authority.pub NONCE-HEX [pcrs.json].
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa, utils

NOW = datetime.datetime.now(datetime.UTC)
CAP = hashlib.sha256(b"vtpm-manager: root key unsealed").digest()
PCRS = [4, 9, 11, 12, 13]
AK = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 18  # fixedTPM fixedParent sensitiveDataOrigin restricted sign
EK_P256 = bytes.fromhex(
    "0023000b000300b20020837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa000600800043001000030010"
)
HASHES = {0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512", 0x0004: "sha1"}
ECDSA_WITH_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
SIGNS_VTPMS = "signs credentials of virtual TPMs"
Key = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


def sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def sized(data: bytes) -> bytes:
    return len(data).to_bytes(2) + data


def demand(good: bool, what: str) -> None:
    if not good:
        raise ValueError(what)


def unhex(values: dict[str, str]) -> dict[int, bytes]:
    return {int(pcr): bytes.fromhex(value) for pcr, value in values.items()}


def b64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def ecdsa(key: Any, raw: bytes, message: bytes, *, digest: bool = False) -> None:
    """r || s, 64 bytes."""
    der = utils.encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:64]) if len(raw) == 64 else 0)
    key.verify(der, message, ec.ECDSA(utils.Prehashed(hashes.SHA256()) if digest else hashes.SHA256()))


def public_point(point: bytes) -> ec.EllipticCurvePublicKey:
    demand(point[:2] == b"\0\x20" == point[34:36] and len(point) == 68, "point of a key")
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\4" + point[2:34] + point[36:])


def public(area: bytes) -> tuple[int, Key]:
    """(attributes, key) of a TPMT_PUBLIC with a SHA-256 Name: a signing key on P-256, or with RSA-2048."""
    alg, name_alg, attributes, policy = (int.from_bytes(area[a:b]) for a, b in ((0, 2), (2, 4), (4, 8), (8, 10)))
    rest = area[10 + policy :]
    demand(name_alg == 0x000B and rest[:2] == b"\0\x10", "name algorithm or symmetric part of a key")
    if alg == 0x0023:
        demand(rest[2:10] == bytes.fromhex("0018000b00030010"), "scheme or curve of a key")
        return attributes, public_point(rest[10:])
    demand(alg == 0x0001 and rest[2:4] in (b"\0\x14", b"\0\x16") and len(rest) == 270, "kind of a key")
    return attributes, rsa.RSAPublicNumbers(int.from_bytes(rest[8:12]) or 65537, int.from_bytes(rest[14:])).public_key()


def checkquote(
    key: Key, quote: bytes, signature: bytes, qualifying: bytes
) -> tuple[list[tuple[int, list[int]]], bytes]:
    """(PCR selection, PCR digest) of a quote that tpm2_checkquote finds good."""
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    with tempfile.TemporaryDirectory() as name:
        argv = ["tpm2_checkquote", "-g", HASHES[int.from_bytes(signature[2:4])], "-q", qualifying.hex()]
        for option, data in {"-u": pem, "-m": quote, "-s": signature}.items():
            Path(name, option).write_bytes(data)
            argv += [option, str(Path(name, option))]
        done = subprocess.run(argv, capture_output=True, env={"TSS2_LOG": "all+none", "PATH": "/usr/bin:/bin"})
    demand(done.returncode == 0, f"quote ({done.stderr.decode(errors='replace').strip()[:200]})")
    demand(quote[:6] == bytes.fromhex("ff5443478018"), "magic or type of a quote")
    at = 6 + 2 + int.from_bytes(quote[6:8])
    extra = int.from_bytes(quote[at : at + 2])
    demand(quote[at + 2 : at + 2 + extra] == qualifying, "qualifying data of a quote")
    at, banks = at + 2 + extra + 17 + 8 + 4, []
    for _ in range(int.from_bytes(quote[at - 4 : at])):
        bits = int.from_bytes(quote[at + 3 : at + 3 + quote[at + 2]], "little")
        banks.append((int.from_bytes(quote[at : at + 2]), [pcr for pcr in range(24) if bits >> pcr & 1]))
        at += 3 + quote[at + 2]
    demand(len(quote) == at + 2 + int.from_bytes(quote[at : at + 2]), "length of a quote")
    return banks, quote[at + 2 :]


def statement(data: bytes, kind: str, authority: Any) -> dict[str, Any]:
    """The body of a statement that the authority has signed (DSSE)."""
    told = json.loads(data)
    name, payload = f"application/vnd.vtpm-manager.{kind}+json".encode(), base64.b64decode(told["payload"])
    demand(told["payloadType"] == name.decode(), "kind of a statement")
    pae = b"DSSEv1 %d %s %d %s" % (len(name), name, len(payload), payload)
    ecdsa(authority, base64.b64decode(told["signatures"][0]["sig"]), pae)
    body: dict[str, Any] = json.loads(payload)
    return body


def replay(log: bytes) -> dict[int, bytes]:
    """SHA-256 values of the event log, crypto-agile format."""
    stream = io.BytesIO(log)

    def number(size: int = 4) -> int:
        return int.from_bytes(stream.read(size), "little")

    stream.seek(28)
    first, _ = number(), stream.seek(56)
    sizes, values = {number(2): number(2) for _ in range(number())}, {pcr: bytes(32) for pcr in range(24)}
    end = stream.seek(32 + first)
    while end < len(log):
        pcr, type_, count = number(), number(), number()
        digests = {alg: stream.read(sizes[alg]) for alg in (number(2) for _ in range(count))}
        if type_ != 3:
            values[pcr] = sha(values[pcr], digests[0x000B])
        end = stream.seek(number(), io.SEEK_CUR)
    demand(end == len(log), "length of the event log")
    return values


def verify(told: dict[str, Any], authority: Any, nonce: bytes, expected: dict[int, bytes] | None) -> None:
    demand(told["version"] == 2 and told["kind"] in ("linked", "third-party", "platform"), "version or kind")
    demand(b64(told["nonce"]) == nonce, "nonce")
    vtpm, ek = told["vtpm"], b64(told["vtpm"]["ek"])
    demand(ek[: len(EK_P256)] == EK_P256 and len(ek) == len(EK_P256) + 68, "EK template")
    if told["kind"] != "third-party":
        certificate, ca = (x509.load_der_x509_certificate(b64(vtpm[name])) for name in ("ek_certificate", "ek_ca"))
        certificate.verify_directly_issued_by(ca)
        ca.verify_directly_issued_by(ca)
        demand(ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca, "EK CA")
        demand(certificate.public_key() == public_point(ek[-68:]), "EK certificate's key")
    ek_name = b"\0\x0b" + sha(ek)
    counts = [vtpm[name].to_bytes(4, "big") for name in ("recovered", "reverted", "snapshots")]
    history = vtpm["generation"].to_bytes(8, "big") + b"".join(counts)
    binding = sha(b"vtpm-manager platform quote 2\0", sized(ek_name), history, sized(nonce))
    if told["kind"] != "platform":
        area, quote, signature = (b64(vtpm[name]) for name in ("ak", "quote", "signature"))
        attributes, key = public(area)
        demand(attributes & AK == AK and not attributes & 1 << 17, "AK's attributes")
        banks, digest = checkquote(key, quote, signature, nonce)
        values = {HASHES[bank]: pcrs for bank, pcrs in banks if pcrs}
        demand({bank: list(map(int, pcrs)) for bank, pcrs in vtpm["pcrs"].items()} == values, "vTPM's PCRs")
        data = b"".join(b64(vtpm["pcrs"][bank][str(pcr)]) for bank, pcrs in values.items() for pcr in pcrs)
        demand(hashlib.new(HASHES[int.from_bytes(signature[2:4])], data).digest() == digest, "vTPM's PCR values")
        names = sized(ek_name) + history + sized(b"\0\x0b" + sha(area))
        binding = sha(b"vtpm-manager linked quote 2\0", names, sha(quote), sized(nonce))
    chain = [x509.load_der_x509_certificate(b64(each)) for each in told["voucher"]["chain"]]
    for each, der in zip(chain, map(b64, told["voucher"]["chain"]), strict=True):
        authority.verify(each.signature, each.tbs_certificate_bytes, ec.ECDSA(hashes.SHA256()))
        bits = b"\x03" + bytes([len(each.signature) + 1, 0]) + each.signature
        demand(der.endswith(each.tbs_certificate_bytes + ECDSA_WITH_SHA256 + bits), "encoding of the SK's chain")
    (policy,) = chain[0].extensions.get_extension_for_class(x509.CertificatePolicies).value
    texts = [each.explicit_text for each in policy.policy_qualifiers or [] if isinstance(each, x509.UserNotice)]
    demand(texts == [SIGNS_VTPMS], "usage of the SK")
    demand(chain[0].not_valid_before_utc <= NOW <= chain[0].not_valid_after_utc, "validity of the SK")
    ecdsa(chain[0].public_key(), b64(told["voucher"]["signature"]), binding, digest=True)
    if told["kind"] != "third-party":
        platform(told["platform"], binding, authority, expected)


def platform(told: dict[str, Any], binding: bytes, authority: Any, expected: dict[int, bytes] | None) -> None:
    enrolment, approval, log = (b64(told[name]) for name in ("statement", "approval", "log"))
    attributes, key = public(bytes.fromhex(statement(enrolment, "platform", authority)["ak"]))
    demand(attributes & AK == AK, "hardware AK's attributes")
    qualifying = sha(b"vtpm-manager host quote 1\0", binding, sha(enrolment), sha(approval), sha(log))
    banks, digest = checkquote(key, b64(told["quote"]), b64(told["signature"]), qualifying)
    values = {int(pcr): b64(value) for pcr, value in told["pcrs"].items()}
    demand(banks == [(0x000B, PCRS)] and list(values) == PCRS and sha(*values.values()) == digest, "platform's PCRs")
    demand(values[12] == values[13] == bytes(32), "PCR 12 and 13")
    images = [] if expected is None else [expected]
    demand(bool(approval) or expected is not None, "nobody says which image is good")
    if approval:
        images.append(unhex(statement(approval, "approval", authority)["pcrs"]))
    if log:
        found = replay(log)
        images.append({**found, 11: sha(sha(found[11], sha(b"sysinit")), sha(b"ready"))})
    for after in ({**image, 11: sha(image[11], CAP)} for image in images):
        demand(all(values[pcr] == after[pcr] for pcr in PCRS), "platform's PCRs are not those of the image")


if __name__ == "__main__":
    bundle, public_key, nonce_, *rest = sys.argv[1:]
    try:
        key_ = serialization.load_pem_public_key(Path(public_key).read_bytes())
        pcrs_ = unhex(json.loads(Path(rest[0]).read_bytes())["pcrs"]) if rest else None
        verify(json.loads(Path(bundle).read_bytes()), key_, bytes.fromhex(nonce_), pcrs_)
    except (ValueError, LookupError, TypeError, AttributeError, InvalidSignature, x509.ExtensionNotFound) as error:
        sys.exit(f"not good: {error!r}")
    print("good")
