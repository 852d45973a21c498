"""Runs in a guest: a client that holds much in its TPM and goes on using it, through /dev/tpm0 and without a TSS.

It has an HMAC session (unbound, unsalted, so keyed with nothing but the nonces), a loaded key, a persistent key, an NV
counter and an extended PCR. In each round it extends PCR 16, increments the counter and reads the PCR's value under
the session's HMAC, and checks all answers itself. A line per round in /tmp/log. Ends when there is a file /tmp/stop;
then /tmp/end says "ok ROUNDS", or what was wrong.
"""

import hashlib
import hmac
import os
import struct
import time

from manager_vm.wire import tpm

COUNTER, PERSISTENT, PCR = 0x1500017, 0x81010001, 16
_HMAC_SESSION, _CONTINUE = 0, 1
_COUNTER_ATTRIBUTES = 0x00060014 | 0x02000000  # TPM_NT_COUNTER, OWNERREAD, AUTHREAD, AUTHWRITE, NO_DA
_STORAGE = bytes.fromhex("0023000b00030472000000060080004300100003001000000000")


class Tpm:
    """The device. Every answer but success, and every error of the kernel, ends the program."""

    def __init__(self) -> None:
        self._device = os.open("/dev/tpm0", os.O_RDWR)

    def execute(self, command: bytes) -> bytes:
        """The response, which is a success."""
        os.write(self._device, command)
        response = os.read(self._device, 4096)
        code = tpm.response_code(response)
        if code:
            raise SystemExit(f"TPM_RC {code:#x} to command {tpm.command_code(command):#x}")
        return response


class HmacSession:
    """TPM2_StartAuthSession (Part 3, 11.1), neither salted nor bound; HMACs as in Part 1, 19.6."""

    def __init__(self, device: Tpm) -> None:
        self._device = device
        self._caller = os.urandom(16)
        rest = tpm.sized(self._caller) + tpm.sized(b"") + struct.pack(">BHH", _HMAC_SESSION, 0x0010, tpm.TPM_ALG_SHA256)
        answer = device.execute(tpm.command(0x176, rest, handles=(tpm.TPM_RH_NULL, tpm.TPM_RH_NULL)))
        self.handle = int.from_bytes(answer[10:14], "big")
        self._theirs = answer[16:]

    def execute(self, code: int, handles: tuple[int, ...], names: tuple[bytes, ...], parameters: bytes = b"") -> bytes:
        """The response's parameters; both HMACs are those of this session."""
        self._caller = os.urandom(16)
        digest = hashlib.sha256(code.to_bytes(4, "big") + b"".join(names) + parameters).digest()
        mac = self._mac(digest, self._caller, self._theirs)
        area = self.handle.to_bytes(4, "big") + tpm.sized(self._caller) + bytes([_CONTINUE]) + tpm.sized(mac)
        body = b"".join(each.to_bytes(4, "big") for each in handles)
        body += len(area).to_bytes(4, "big") + area + parameters
        header = tpm.HEADER.pack(tpm.TPM_ST_SESSIONS, tpm.HEADER_SIZE + len(body), code)
        _, answer = tpm.parse_response(self._device.execute(header + body))
        found = tpm.parameters(answer)
        rest = answer[4 + len(found) :]
        size = int.from_bytes(rest[:2], "big")
        self._theirs = rest[2 : 2 + size]
        digest = hashlib.sha256(bytes(4) + code.to_bytes(4, "big") + found).digest()
        expected = self._mac(digest, self._theirs, self._caller)
        if not hmac.compare_digest(rest[5 + size :], expected):
            raise SystemExit("the TPM's answer has a wrong HMAC: this is not the session that was opened")
        return found

    @staticmethod
    def _mac(digest: bytes, newer: bytes, older: bytes) -> bytes:
        return hmac.new(b"", digest + newer + older + bytes([_CONTINUE]), "sha256").digest()


def name_of(answer: bytes) -> bytes:
    """The Name in the response to TPM2_NV_ReadPublic or TPM2_ReadPublic: the second TPM2B."""
    size = int.from_bytes(answer[10:12], "big")
    start = 12 + size
    return answer[start + 2 : start + 2 + int.from_bytes(answer[start : start + 2], "big")]


def main() -> str:
    device = Tpm()
    device.execute(tpm.nv_define_space(COUNTER, _COUNTER_ATTRIBUTES, 8, authority=tpm.TPM_RH_OWNER))
    loaded = int.from_bytes(device.execute(tpm.create_primary(tpm.TPM_RH_OWNER, _STORAGE))[10:14], "big")
    device.execute(tpm.evict_control(loaded, PERSISTENT))
    session = HmacSession(device)
    device.execute(tpm.command(0x134, handles=(COUNTER, COUNTER), auths=1))
    first = int.from_bytes(device.execute(tpm.nv_read(COUNTER, 0, 8))[-13:-5], "big")
    counter = name_of(device.execute(tpm.nv_read_public(COUNTER)))
    keys = [name_of(device.execute(tpm.read_public(each))) for each in (loaded, PERSISTENT)]
    expected, rounds = bytes(32), 0
    with open("/tmp/log", "w", buffering=1) as log:
        while not os.path.exists("/tmp/stop"):
            rounds += 1
            digest = hashlib.sha256(rounds.to_bytes(4, "big")).digest()
            extend = struct.pack(">IH", 1, tpm.TPM_ALG_SHA256) + digest
            session.execute(0x182, (PCR,), (PCR.to_bytes(4, "big"),), extend)
            expected = hashlib.sha256(expected + digest).digest()
            session.execute(0x134, (COUNTER, COUNTER), (counter, counter))
            value = session.execute(0x14E, (COUNTER, COUNTER), (counter, counter), struct.pack(">HH", 8, 0))
            if int.from_bytes(value[2:], "big") != first + rounds:
                return f"the counter is {value.hex()} after {rounds} rounds, and was {first}"
            if device.execute(tpm.pcr_read(tpm.pcr_selection({tpm.TPM_ALG_SHA256: [PCR]})))[-32:] != expected:
                return f"PCR {PCR} is not what {rounds} extends lead to"
            if [name_of(device.execute(tpm.read_public(each))) for each in (loaded, PERSISTENT)] != keys:
                return "a key is another one"
            print(rounds, time.monotonic(), file=log)
    return f"ok {rounds}"


try:
    outcome = main()
except SystemExit as ended:
    outcome = str(ended)
except OSError as error:
    outcome = repr(error)
with open("/tmp/end.new", "w") as end:
    end.write(outcome)
os.rename("/tmp/end.new", "/tmp/end")
