"""What only a guest with its own program does: messages by hand, TPM commands by hand, scribbling in shared memory."""

from __future__ import annotations

import mmap
import os
import socket
import struct
import time
from types import TracebackType
from typing import NamedTuple

from manager_vm.errors import BusyError
from manager_vm.vchan import address
from manager_vm.vchan.endpoint import Endpoint, State
from manager_vm.vchan.ring import MEMORY_SIZE
from manager_vm.wire import channel, framing, tpm
from manager_vm.wire.channel import Command, Error, Hello, Message, Response, Welcome
from manager_vm.wire.tpm import CC
from tests.hmac_session import TPM_SE_POLICY, start_auth_session

TPM_CC_NV_INCREMENT = 0x134
TPM_CC_DICTIONARY_ATTACK_PARAMETERS = 0x13A
TPM_CC_PCR_RESET = 0x13D
TPM_CC_POLICY_SECRET = 0x151
TPM_CC_UNSEAL = 0x15E
TPM_CC_POLICY_COMMAND_CODE = 0x16C
TPM_CC_POLICY_TICKET = 0x172
TPM_CC_PCR_EXTEND = 0x182
TPM_CC_POLICY_GET_DIGEST = 0x189
TPM_RH_LOCKOUT = 0x4000000A
TPM_PT_LOCKOUT_COUNTER = 0x20E
_ECC_STORAGE = bytes.fromhex("0023000b00030472000000060080004300100003001000000000")  # TPMT_PUBLIC, P-256, AES-128-CFB
_SEALED = bytes.fromhex("0008000b00000052000000100000")  # TPMT_PUBLIC, sealed data, under dictionary-attack protection


def rc(response: bytes) -> int:
    """The response code."""
    return tpm.response_code(response)


def nv_increment(index: int) -> bytes:
    """TPM2_NV_Increment (Part 3, 31.8) with the index's own empty auth."""
    return tpm.command(TPM_CC_NV_INCREMENT, handles=(index, index), auths=1)


def nv_write(index: int, data: bytes) -> bytes:
    """TPM2_NV_Write with the index's own empty auth."""
    return tpm.nv_write(index, 0, data, authority=index)


def pcr_extend(pcr: int) -> bytes:
    """TPM2_PCR_Extend (Part 3, 22.2) of the SHA-256 bank."""
    digests = struct.pack(">IH", 1, tpm.TPM_ALG_SHA256) + b"\x11" * 32
    return tpm.command(TPM_CC_PCR_EXTEND, digests, handles=(pcr,), auths=1)


def pcr_read(pcr: int) -> bytes:
    """TPM2_PCR_Read (Part 3, 22.4) of the SHA-256 bank."""
    selected = bytearray(3)
    selected[pcr // 8] |= 1 << pcr % 8
    return tpm.command(CC.TPM2_PCR_Read, struct.pack(">IHB", 1, tpm.TPM_ALG_SHA256, 3) + bytes(selected))


def create_primary() -> bytes:
    """TPM2_CreatePrimary of an ECC storage key in the owner hierarchy."""
    return tpm.create_primary(tpm.TPM_RH_OWNER, _ECC_STORAGE)


def start_policy_session() -> bytes:
    """TPM2_StartAuthSession (Part 3, 11.1): a policy session, neither salted nor bound."""
    return start_auth_session(TPM_SE_POLICY, os.urandom(16))


def policy_command_code(session: int) -> bytes:
    """TPM2_PolicyCommandCode (Part 3, 23.11) for TPM2_Sign."""
    return tpm.command(TPM_CC_POLICY_COMMAND_CODE, struct.pack(">I", 0x15D), handles=(session,))


def policy_secret(session: int, nonce: bytes, seconds: int) -> bytes:
    """TPM2_PolicySecret (Part 3, 23.4) of the owner with an empty auth; the response has a ticket for ``seconds``."""
    rest = tpm.sized(nonce) + tpm.sized(b"") + tpm.sized(b"") + struct.pack(">i", -seconds)
    return tpm.command(TPM_CC_POLICY_SECRET, rest, handles=(tpm.TPM_RH_OWNER, session), auths=1)


def policy_ticket(session: int, secret: bytes) -> bytes:
    """TPM2_PolicyTicket (Part 3, 23.5) of what the response to ``policy_secret`` had."""
    assert rc(secret) == 0, hex(rc(secret))
    said = tpm.parameters(secret[tpm.HEADER_SIZE :])
    timeout, ticket = said[:10], said[10:]
    name = tpm.sized(struct.pack(">I", tpm.TPM_RH_OWNER))
    return tpm.command(TPM_CC_POLICY_TICKET, timeout, tpm.sized(b"") * 2, name, ticket, handles=(session,))


def policy_get_digest(session: int) -> bytes:
    """TPM2_PolicyGetDigest (Part 3, 23.19)."""
    return tpm.command(TPM_CC_POLICY_GET_DIGEST, handles=(session,))


def seal(data: bytes, auth: bytes, owner_auth: bytes = b"") -> bytes:
    """TPM2_CreatePrimary of sealed data in the owner hierarchy, under ``auth`` and dictionary-attack protection."""
    sensitive = tpm.sized(tpm.sized(auth) + tpm.sized(data))
    rest = sensitive + tpm.sized(_SEALED) + tpm.sized(b"") + struct.pack(">I", 0)
    return tpm.command(tpm.CC.TPM2_CreatePrimary, rest, handles=(tpm.TPM_RH_OWNER,), auths=1, password=owner_auth)


def unseal(sealed: int, auth: bytes) -> bytes:
    """TPM2_Unseal (Part 3, 12.7)."""
    return tpm.command(TPM_CC_UNSEAL, handles=(sealed,), auths=1, password=auth)


def unsealed(response: bytes) -> bytes:
    """The data in a successful response to TPM2_Unseal."""
    assert rc(response) == 0, hex(rc(response))
    return tpm.parameters(response[tpm.HEADER_SIZE :])[2:]


def pcr_reset(pcr: int) -> bytes:
    """TPM2_PCR_Reset (Part 3, 22.8)."""
    return tpm.command(TPM_CC_PCR_RESET, handles=(pcr,), auths=1)


def pcr_update_counter(response: bytes) -> int:
    """The counter in a successful response to TPM2_PCR_Read."""
    assert rc(response) == 0, hex(rc(response))
    return int.from_bytes(response[10:14], "big")


def dictionary_attack_parameters(tries: int, interval: int, recovery: int) -> bytes:
    """TPM2_DictionaryAttackParameters (Part 3, 25.3) with the empty lockoutAuth; seconds."""
    values = struct.pack(">III", tries, interval, recovery)
    return tpm.command(TPM_CC_DICTIONARY_ATTACK_PARAMETERS, values, handles=(TPM_RH_LOCKOUT,), auths=1)


def get_property(number: int) -> bytes:
    """TPM2_GetCapability of one TPM_PT."""
    return tpm.get_capability(tpm.TPM_CAP_TPM_PROPERTIES, number, 1)


def property_of(response: bytes) -> int:
    """The value in a successful response to ``get_property``."""
    assert rc(response) == 0, hex(rc(response))
    return int.from_bytes(response[-4:], "big")


def context_save(handle: int) -> bytes:
    """TPM2_ContextSave (Part 3, 28.2)."""
    return tpm.command(tpm.CC.TPM2_ContextSave, handles=(handle,))


def context_load(saved: bytes) -> bytes:
    """TPM2_ContextLoad (Part 3, 28.3) of what the response to TPM2_ContextSave had."""
    assert rc(saved) == 0, hex(rc(saved))
    return tpm.command(tpm.CC.TPM2_ContextLoad, saved[tpm.HEADER_SIZE :])


class Time(NamedTuple):
    """TPMS_TIME_INFO (Part 2, 10.11.2); milliseconds."""

    time: int
    clock: int
    resets: int
    restarts: int
    safe: int

    @classmethod
    def of(cls, response: bytes) -> Time:
        """From a successful response to TPM2_ReadClock."""
        assert rc(response) == 0, hex(rc(response))
        return cls(*struct.unpack(">QQIIB", response[tpm.HEADER_SIZE :]))


def handle_of(response: bytes) -> int:
    """The handle in a successful response."""
    assert rc(response) == 0, hex(rc(response))
    return int.from_bytes(response[10:14], "big")


def _connected(where: str) -> Endpoint:
    """Once whoever was there before has gone."""
    deadline = time.monotonic() + 5
    while True:
        try:
            return address.connect(address.parse(where))
        except BusyError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.02)


class Session:
    """A front end that says exactly what it is told to."""

    def __init__(self, where: str, session: bytes = b"") -> None:
        self.id = session or os.urandom(channel.SESSION_SIZE)
        self._endpoint = _connected(where)
        self._decoder = framing.Decoder(channel.MAX_BODY)
        self._messages: list[Message] = []
        deadline = time.monotonic() + 5
        while self._endpoint.wait(0.1) is not State.OPEN:
            assert time.monotonic() < deadline, "the ring did not open"

    def hello(self) -> Welcome:
        """HELLO, WELCOME."""
        self.send(Hello(self.id))
        welcome = self.receive()
        assert isinstance(welcome, Welcome)
        return welcome

    def send(self, message: Message) -> None:
        """One message."""
        self.send_bytes(framing.encode(channel.to_frame(message)))

    def send_bytes(self, data: bytes) -> None:
        """Anything."""
        self._endpoint.send(data)

    def write_what_fits(self, messages: list[Message]) -> None:
        """All at once, as one piece, without waiting for room."""
        self._endpoint.update()
        self._endpoint.write(b"".join(framing.encode(channel.to_frame(message)) for message in messages))

    def take(self, count: int) -> bytes:
        """At most ``count`` bytes of what has come, and a notification that there is room again."""
        self._endpoint.update()
        data = self._endpoint.read(count)
        if data:
            self._endpoint.write(b"")
        return data

    def drain(self) -> bytes:
        """What has come, as it came."""
        self._endpoint.update()
        return self._endpoint.read(1 << 20)

    def receive(self, timeout: float = 10.0) -> Message:
        """The next message."""
        deadline = time.monotonic() + timeout
        while not self._messages:
            assert time.monotonic() < deadline, "no message came"
            self._endpoint.wait(0.2)
            self._messages += [channel.from_frame(f) for f in self._decoder.feed(self._endpoint.read(65536))]
        return self._messages.pop(0)

    def silent(self, seconds: float) -> bool:
        """Whether nothing comes for so long."""
        try:
            self.receive(seconds)
        except AssertionError:
            return True
        return False

    def command(self, seq: int, command: bytes, locality: int = 0) -> Response | Error:
        """One COMMAND and what is said to it."""
        self.send(Command(seq, locality, command))
        answer = self.receive()
        assert isinstance(answer, Response | Error), answer
        return answer

    def close(self) -> None:
        """Leave."""
        self._endpoint.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Scribbler:
    """Holds a channel's shared memory and writes into it without any manners."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path.removeprefix("unix:"))
        _, self._fds, _, _ = socket.recv_fds(self._socket, 1, 3)
        self.memory = mmap.mmap(self._fds[0], MEMORY_SIZE)

    def word(self, index: int, value: int) -> None:
        """Write one 32-bit word (``ring.py`` numbers them) and notify the manager."""
        self.memory[4 * index : 4 * index + 4] = value.to_bytes(4, "little")
        self.kick()

    def kick(self) -> None:
        """Notify the manager."""
        os.eventfd_write(self._fds[2], 1)

    def open(self) -> bool:
        """Whether the manager has acknowledged the nonce that was written to word 16."""
        nonce = self.memory[64:68]
        return nonce != bytes(4) and self.memory[128:132] == nonce

    def closed_by_peer(self) -> bool:
        """Whether the manager has dropped this connection."""
        self._socket.settimeout(5)
        return self._socket.recv(1) == b""

    def close(self) -> None:
        """Leave."""
        self.memory.close()
        for fd in self._fds:
            os.close(fd)
        self._socket.close()
