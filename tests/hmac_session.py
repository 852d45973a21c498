"""An HMAC session by hand, for clients that have no TSS: tests of the host, and a program in a guest.

It stands beside that program there, and needs only what a guest has of the product.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct

from manager_vm.wire import tpm

TPM_CC_START_AUTH_SESSION = 0x176
TPM_SE_HMAC, TPM_SE_POLICY = 0, 1
_CONTINUE = b"\x01"  # TPMA_SESSION: the session outlives the command


class WrongHmacError(Exception):
    """A successful response does not come from the TPM that holds the session."""


class HmacSession:
    """With SHA-256 (Part 1, 19.6), neither salted nor bound: its key is the entity's auth alone."""

    def __init__(self, device: tpm.Tpm) -> None:
        self._device = device
        own = os.urandom(16)
        response = device.execute(start_auth_session(TPM_SE_HMAC, own))
        self.handle = int.from_bytes(response[10:14], "big")
        self._theirs = response[16:]

    def execute(
        self, code: int, handles: tuple[int, ...], names: tuple[bytes, ...], parameters: bytes = b"", auth: bytes = b""
    ) -> bytes:
        """The response; WrongHmacError for a success without the right HMAC. ``auth``: of the first handle's entity."""
        own, number = os.urandom(16), struct.pack(">I", code)
        proof = _proof(auth, number + b"".join(names) + parameters, own + self._theirs)
        area = struct.pack(">I", self.handle) + tpm.sized(own) + _CONTINUE + tpm.sized(proof)
        body = struct.pack(f">{len(handles)}II", *handles, len(area)) + area + parameters
        header = tpm.HEADER.pack(tpm.TPM_ST_SESSIONS, tpm.HEADER_SIZE + len(body), code)
        response = self._device.execute(header + body)
        if tpm.response_code(response) == tpm.RC.TPM_RC_SUCCESS:
            said = tpm.parameters(response[tpm.HEADER_SIZE :])
            rest = response[tpm.HEADER_SIZE + 4 + len(said) :]
            self._theirs = rest[2:18]
            if not hmac.compare_digest(rest[21:], _proof(auth, bytes(4) + number + said, self._theirs + own)):
                raise WrongHmacError(f"the answer to command {code:#x} has a wrong HMAC: this is another session")
        return response


def start_auth_session(kind: int, nonce: bytes) -> bytes:
    """TPM2_StartAuthSession (Part 3, 11.1), neither salted nor bound; ``nonce``: 16 bytes."""
    rest = tpm.sized(nonce) + tpm.sized(b"") + struct.pack(">BHH", kind, tpm.TPM_ALG_NULL, tpm.TPM_ALG_SHA256)
    return tpm.command(TPM_CC_START_AUTH_SESSION, rest, handles=(tpm.TPM_RH_NULL, tpm.TPM_RH_NULL))


def name_of(response: bytes) -> bytes:
    """The Name in a successful response to TPM2_ReadPublic or TPM2_NV_ReadPublic: the second TPM2B."""
    start = 12 + int.from_bytes(response[10:12], "big")
    return response[start + 2 : start + 2 + int.from_bytes(response[start : start + 2], "big")]


def _proof(auth: bytes, what: bytes, nonces: bytes) -> bytes:
    return hmac.digest(auth, hashlib.sha256(what).digest() + nonces + _CONTINUE, "sha256")
