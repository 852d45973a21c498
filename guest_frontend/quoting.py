"""``quote``: a quote by an AK of this guest's vTPM, and the evidence that its manager gives for it: one JSON file."""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from guest_frontend import asking, broker, control
from manager_vm.errors import BusyError, ConfigError, NoEvidenceError, RemoteProtocolError, UnreachableError
from manager_vm.wire import tpm
from manager_vm.wire.quote import MAX_EVIDENCE, NONCE_SIZES, QuoteBegin, Refusal
from manager_vm.wire.tpm import RC, Tpm

AK_HANDLE = 0x8101A001  # endorsement range of the registry of reserved handles
_BANKS = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D}
# TPMT_PUBLIC: ECC, SHA-256, fixedTPM fixedParent sensitiveDataOrigin userWithAuth noDA restricted sign, no policy, no
# symmetric algorithm, ECDSA with SHA-256, P-256, no KDF, no point
_AK_TEMPLATE = bytes.fromhex("0023 000b 00050472 0000 0010 0018 000b 0003 0010 0000 0000")
_AT_ONCE = 8  # PCRs of one TPM2_PCR_Read
_TRIES = 3
_LATER = (Refusal.BUSY, Refusal.LATER, Refusal.NOT_SERVING)

Pcrs = dict[str, dict[int, bytes]]


def main(args: list[str]) -> int:
    """``args``: what follows ``quote``."""
    told = _parser().parse_args(args)
    if (told.channel is None) == (told.device is None):
        raise ConfigError("name either CHANNEL or --device /dev/tpmrmN")
    nonce, selection = _nonce(told.nonce), _selection(told.pcrs)
    with _opened(told.channel, told.device) as (device, connection):
        handle = _ak(device, told.ak)
        quote, signature, values = _quoted(device, handle, nonce, selection)
        evidence = _ask(connection, QuoteBegin(0, handle, nonce, quote, signature))
    _write(_bundle(evidence, values, third_party=told.third_party), told.out)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m guest_frontend quote")
    parser.add_argument("channel", nargs="?", metavar="CHANNEL", help="whose 'pipe' front end to use, or start")
    parser.add_argument("--device", metavar="/dev/tpmrmN", help="whose 'device' front end to use")
    parser.add_argument("--nonce", required=True, metavar="HEX", help="the verifier's, 16 to 64 bytes")
    parser.add_argument("--pcrs", default="sha256:0-10", metavar="BANK:N,N-N[+...]", help="default: sha256:0-10")
    parser.add_argument("--ak", metavar="HANDLE", help=f"a persistent AK (default: {AK_HANDLE:#x}, made if missing)")
    parser.add_argument("--third-party", action="store_true", help="leave out what links vTPMs of one host")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there (default: standard output)")
    return parser


# -- who is asked ------------------------------------------------------------------------------------------------


class _Stream:
    """TPM commands over the broker's connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def execute(self, command: bytes) -> bytes:
        """One command, its response."""
        self._connection.sendall(command)
        return receive(self._connection, tpm.MAX_COMMAND)


class _Device:
    """TPM commands over a character device."""

    def __init__(self, path: str) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"cannot open {path}: {error.strerror}") from None

    def execute(self, command: bytes) -> bytes:
        """One command, its response."""
        try:
            os.write(self._fd, command)
            return os.read(self._fd, tpm.MAX_COMMAND)
        except OSError as error:
            raise UnreachableError(f"the TPM device does not answer: {error.strerror}") from None

    def close(self) -> None:
        """End it."""
        os.close(self._fd)


@contextmanager
def _opened(channel: str | None, device: str | None) -> Iterator[tuple[Tpm, socket.socket]]:
    """The TPM, and the connection for questions."""
    with ExitStack() as stack:
        if device is None:
            connection = stack.enter_context(broker.connect(channel or ""))
            yield _Stream(connection), connection
            return
        connection = stack.enter_context(control.connect(control.path_of(device)))
        opened = _Device(device)
        stack.callback(opened.close)
        yield opened, connection


def receive(connection: socket.socket, most: int) -> bytes:
    """One response: its header says how long it is."""
    found = b""
    while len(found) < tpm.HEADER_SIZE or len(found) < int.from_bytes(found[2:6], "big"):
        if len(found) >= tpm.HEADER_SIZE and int.from_bytes(found[2:6], "big") > most:
            raise RemoteProtocolError("the front end's answer is too long")
        piece = connection.recv(65536)
        if not piece:
            raise UnreachableError("the front end has ended; try again")
        found += piece
    return found


def _ask(connection: socket.socket, question: QuoteBegin) -> bytes:
    connection.sendall(asking.pack(question))
    answer = receive(connection, asking.HEADER.size + MAX_EVIDENCE)
    tag, _, reason = asking.HEADER.unpack_from(answer)
    body = answer[asking.HEADER.size :]
    if tag != asking.TAG:
        raise RemoteProtocolError("this front end does not know such questions; is it of an older version?")
    if reason == 0:
        return body
    text = body.decode(errors="replace")
    if reason in _LATER:
        raise BusyError(f"{text} ({Refusal(reason).name})")
    raise NoEvidenceError(f"the manager does not vouch for this quote: {text} ({reason})", reason)


# -- what the vTPM does ------------------------------------------------------------------------------------------


def _demand(device: Tpm, command: bytes, what: str) -> bytes:
    rc, body = tpm.parse_response(device.execute(command))
    if rc != RC.TPM_RC_SUCCESS:
        raise ConfigError(f"the vTPM refuses to {what} (TPM_RC {rc:#x})")
    return body


def _ak(device: Tpm, named: str | None) -> int:
    """The handle of the AK; the default one is made where there is none."""
    try:
        handle = AK_HANDLE if named is None else int(named, 16)
        command = tpm.read_public(handle)
    except (ValueError, OverflowError):
        raise ConfigError(f"--ak {named!r} is no handle: use a hexadecimal number as 0x81010001") from None
    if named is not None or tpm.response_code(device.execute(command)) == RC.TPM_RC_SUCCESS:
        return handle
    made = _demand(device, tpm.create_primary(tpm.TPM_RH_ENDORSEMENT, _AK_TEMPLATE), f"make an AK; {_OWN}")
    transient = int.from_bytes(made[:4], "big")
    try:
        _demand(device, tpm.evict_control(transient, handle), f"make the AK persistent at {handle:#x}; {_OWN}")
    finally:
        device.execute(tpm.flush_context(transient))
    return handle


_OWN = "if a hierarchy has a password, make an AK with tpm2_createak and tpm2_evictcontrol, and name it with --ak"


def _quoted(device: Tpm, handle: int, nonce: bytes, wanted: dict[str, list[int]]) -> tuple[bytes, bytes, Pcrs]:
    """(TPMS_ATTEST, TPMT_SIGNATURE, the values that were quoted)."""
    selection = tpm.pcr_selection({_BANKS[bank]: pcrs for bank, pcrs in wanted.items()})
    for _ in range(_TRIES):
        values = {bank: _values(device, bank, pcrs) for bank, pcrs in wanted.items()}
        body = tpm.parameters(_demand(device, tpm.quote(handle, nonce, selection), f"quote with key {handle:#x}"))
        size = int.from_bytes(body[:2], "big")
        quote, signature = body[2 : 2 + size], body[2 + size :]
        told = b"".join(value for bank in values.values() for value in bank.values())
        if quote.endswith(_digest(signature, told)):
            return quote, signature, values
    raise BusyError("the PCRs change all the time; try again")


def _digest(signature: bytes, values: bytes) -> bytes:
    """As TPMS_QUOTE_INFO has it: with the hash of the signature's scheme."""
    number = int.from_bytes(signature[2:4], "big")
    name = next((name for name, each in _BANKS.items() if each == number), "sha256")
    return tpm.sized(hashlib.new(name, values).digest())


def _values(device: Tpm, bank: str, pcrs: list[int]) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for start in range(0, len(pcrs), _AT_ONCE):
        wanted = pcrs[start : start + _AT_ONCE]
        body = _demand(device, tpm.pcr_read(tpm.pcr_selection({_BANKS[bank]: wanted})), "read PCRs")
        digests = _digests(body)
        if len(digests) != len(wanted):
            raise ConfigError(f"the vTPM has no PCR bank {bank}")
        found |= zip(wanted, digests, strict=True)
    return found


def _digests(body: bytes) -> list[bytes]:
    """TPML_DIGEST behind updateCounter and TPML_PCR_SELECTION (Part 3, 22.4)."""
    at = 8
    for _ in range(int.from_bytes(body[4:8], "big")):
        at += 3 + body[at + 2]
    (count,) = struct.unpack_from(">I", body, at)
    at, found = at + 4, []
    for _ in range(count):
        size = int.from_bytes(body[at : at + 2], "big")
        found.append(body[at + 2 : at + 2 + size])
        at += 2 + size
    return found


# -- what comes in and goes out ----------------------------------------------------------------------------------


def _nonce(text: str) -> bytes:
    with suppress(ValueError):
        nonce = bytes.fromhex(text)
        if len(nonce) in NONCE_SIZES:
            return nonce
    raise ConfigError(f"--nonce takes {NONCE_SIZES[0]} to {NONCE_SIZES[-1]} bytes in hex digits")


def _selection(text: str) -> dict[str, list[int]]:
    """ "sha256:0-7,10+sha384:0" -> bank -> PCRs in ascending order; banks in the order given."""
    found: dict[str, list[int]] = {}
    for part in text.split("+"):
        bank, _, listed = part.partition(":")
        with suppress(ValueError):
            ends = [tuple(map(int, each.split("-"))) for each in listed.split(",")]
            pcrs = sorted({pcr for each in ends for pcr in range(each[0], each[-1] + 1)})
            if bank in _BANKS and bank not in found and pcrs and pcrs[-1] < 24 and all(len(x) < 3 for x in ends):
                found[bank] = pcrs
                continue
        raise ConfigError(f"--pcrs {text!r}: use BANK:N,N-N, several with '+'; banks {', '.join(_BANKS)}, PCRs 0 to 23")
    return found


def _bundle(evidence: bytes, values: Pcrs, *, third_party: bool) -> bytes:
    """The manager's part and ours. A third party gets nothing that other vTPMs of this host have too."""
    try:
        told: dict[str, Any] = json.loads(evidence)
        told["vtpm"]["pcrs"] = {
            bank: {str(pcr): base64.b64encode(value).decode() for pcr, value in pcrs.items()}
            for bank, pcrs in values.items()
        }
        if third_party:
            told["kind"] = "third-party"
            del told["platform"], told["vtpm"]["ek_certificate"], told["vtpm"]["ek_ca"]
    except (ValueError, KeyError, TypeError) as error:
        raise RemoteProtocolError(f"the manager's evidence is damaged ({error})") from None
    return json.dumps(told, indent=1).encode() + b"\n"


def _write(data: bytes, path: Path | None) -> None:
    if path is None:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
        return
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
