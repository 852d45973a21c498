"""Runs in a guest: a client that holds much in its TPM and goes on using it, through /dev/tpm0 and without a TSS.

It has an HMAC session (unbound, unsalted, so keyed with nothing but the nonces), a loaded key, a persistent key, an NV
counter and an extended PCR. In each round it extends PCR 16, increments the counter and reads it under the session's
HMAC, and checks all answers itself, and that PCR and keys are what they should be. A line per round in /tmp/log. Ends
when there is a file /tmp/stop; then /tmp/end says "ok ROUNDS", or what was wrong.
"""

import hashlib
import os
import struct
import sys
import time

from manager_vm.wire import tpm
from tests.hmac_session import HmacSession, WrongHmacError, name_of

TPM_CC_NV_INCREMENT, TPM_CC_PCR_EXTEND = 0x134, 0x182
COUNTER, PERSISTENT, PCR = 0x1500017, 0x81010001, 16
_COUNTER_ATTRIBUTES = 0x00060014 | 0x02000000  # TPM_NT_COUNTER, OWNERREAD, AUTHREAD, AUTHWRITE, NO_DA
_STORAGE = bytes.fromhex("0023000b00030472000000060080004300100003001000000000")


class Tpm:
    """The device. Every answer but success, and every error of the kernel, ends the program.

    ``patient``: TPM_RC_RETRY is asked again, as every TSS does, where an outage is longer than the kernel's patience.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self._device = os.open("/dev/tpm0", os.O_RDWR)
        self._patient = patient

    def execute(self, command: bytes) -> bytes:
        """The response, which is a success."""
        code: int = tpm.RC.TPM_RC_RETRY
        response = b""
        while code == tpm.RC.TPM_RC_RETRY:
            os.write(self._device, command)
            response = os.read(self._device, 4096)
            code = tpm.response_code(response)
            if not self._patient:
                break
        if code:
            raise SystemExit(f"TPM_RC {code:#x} to command {tpm.command_code(command):#x}")
        return response


def main() -> str:
    device = Tpm(patient="patient" in sys.argv)
    device.execute(tpm.nv_define_space(COUNTER, _COUNTER_ATTRIBUTES, 8, authority=tpm.TPM_RH_OWNER))
    loaded = int.from_bytes(device.execute(tpm.create_primary(tpm.TPM_RH_OWNER, _STORAGE))[10:14], "big")
    device.execute(tpm.evict_control(loaded, PERSISTENT))
    session = HmacSession(device)
    device.execute(tpm.command(TPM_CC_NV_INCREMENT, handles=(COUNTER, COUNTER), auths=1))
    first = int.from_bytes(device.execute(tpm.nv_read(COUNTER, 0, 8))[-13:-5], "big")
    counter = name_of(device.execute(tpm.nv_read_public(COUNTER)))
    keys = [name_of(device.execute(tpm.read_public(each))) for each in (loaded, PERSISTENT)]
    expected, rounds = bytes(32), 0
    with open("/tmp/log", "w", buffering=1) as log:
        while not os.path.exists("/tmp/stop"):
            rounds += 1
            digest = hashlib.sha256(rounds.to_bytes(4, "big")).digest()
            extend = struct.pack(">IH", 1, tpm.TPM_ALG_SHA256) + digest
            session.execute(TPM_CC_PCR_EXTEND, (PCR,), (PCR.to_bytes(4, "big"),), extend)
            expected = hashlib.sha256(expected + digest).digest()
            session.execute(TPM_CC_NV_INCREMENT, (COUNTER, COUNTER), (counter, counter))
            read = session.execute(tpm.CC.TPM2_NV_Read, (COUNTER, COUNTER), (counter, counter), bytes((0, 8, 0, 0)))
            value = int.from_bytes(tpm.parameters(read[tpm.HEADER_SIZE :])[2:], "big")
            if value != first + rounds:
                return f"the counter is {value} after {rounds} rounds, and was {first}"
            if device.execute(tpm.pcr_read(tpm.pcr_selection({tpm.TPM_ALG_SHA256: [PCR]})))[-32:] != expected:
                return f"PCR {PCR} is not what {rounds} extends lead to"
            if [name_of(device.execute(tpm.read_public(each))) for each in (loaded, PERSISTENT)] != keys:
                return "a key is another one"
            print(rounds, time.monotonic(), file=log)
    return f"ok {rounds}"


try:
    outcome = main()
except (SystemExit, WrongHmacError) as ended:
    outcome = str(ended)
except OSError as error:
    outcome = repr(error)
with open("/tmp/end.new", "w") as end:
    end.write(outcome)
os.rename("/tmp/end.new", "/tmp/end")
