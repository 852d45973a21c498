"""TPM 2.0 commands and responses as bytes: the header, response codes, and the few commands the product itself sends.

Sources: TCG "TPM 2.0 Library", Part 1 chapter 18 (structure), Part 2 (constants), Part 3 (commands, cited each).
Everything is big-endian. Standard library only: guests use this module too.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Protocol

from manager_vm.errors import RemoteProtocolError

HEADER = struct.Struct(">HII")  # tag, size, command or response code
HEADER_SIZE = HEADER.size  # 10 bytes
MAX_COMMAND = 4096  # bytes, libtpms TPM_PT_MAX_COMMAND_SIZE

TPM_ST_NO_SESSIONS = 0x8001
TPM_ST_SESSIONS = 0x8002
TPM_RS_PW = 0x40000009
TPM_RH_OWNER = 0x40000001
TPM_RH_NULL = 0x40000007
TPM_RH_ENDORSEMENT = 0x4000000B
TPM_RH_PLATFORM = 0x4000000C
TPM_SU_CLEAR, TPM_SU_STATE = 0x0000, 0x0001
TPM_ALG_SHA256 = 0x000B
TPM_ALG_NULL = 0x0010
TPM_CAP_HANDLES = 0x00000001
TPM_CAP_COMMANDS = 0x00000002
TPM_CAP_PCRS = 0x00000005
TPM_CAP_TPM_PROPERTIES = 0x00000006


class RC(IntEnum):
    """Response codes (Part 2, 6.6.3) that the product makes or looks for."""

    TPM_RC_SUCCESS = 0x000
    TPM_RC_INITIALIZE = 0x100
    TPM_RC_FAILURE = 0x101
    TPM_RC_COMMAND_SIZE = 0x142
    TPM_RC_COMMAND_CODE = 0x143
    TPM_RC_VALUE = 0x084
    TPM_RC_HANDLE = 0x08B
    TPM_RC_REFERENCE_H0 = 0x910
    TPM_RC_LOCALITY = 0x907
    TPM_RC_YIELDED = 0x908
    TPM_RC_TESTING = 0x90A
    TPM_RC_LOCKOUT = 0x921
    TPM_RC_RETRY = 0x922


class CC(IntEnum):
    """Command codes (Part 2, 6.5.2) that the product sends or looks at."""

    TPM2_EvictControl = 0x120
    TPM2_HierarchyChangeAuth = 0x129
    TPM2_NV_DefineSpace = 0x12A
    TPM2_CreatePrimary = 0x131
    TPM2_NV_Write = 0x137
    TPM2_SelfTest = 0x143
    TPM2_Startup = 0x144
    TPM2_Shutdown = 0x145
    TPM2_StirRandom = 0x146
    TPM2_NV_Read = 0x14E
    TPM2_Quote = 0x158
    TPM2_ContextLoad = 0x161
    TPM2_ContextSave = 0x162
    TPM2_FlushContext = 0x165
    TPM2_NV_ReadPublic = 0x169
    TPM2_ReadPublic = 0x173
    TPM2_GetCapability = 0x17A
    TPM2_GetRandom = 0x17B
    TPM2_PCR_Read = 0x17E
    TPM2_ReadClock = 0x181
    TPM2_PCR_Extend = 0x182


class Tpm(Protocol):
    """A TPM is one method. swtpm, a guest's link and a fake all have it."""

    def execute(self, command: bytes) -> bytes:
        """Run one command and return its response."""


def error_response(rc: int) -> bytes:
    """A response that carries nothing but ``rc`` (10 bytes)."""
    return HEADER.pack(TPM_ST_NO_SESSIONS, HEADER_SIZE, rc)


def check_frame(command: bytes) -> int | None:
    """The command filter: None if length and size field agree (10 to 4096 bytes), else the RC to answer."""
    if not HEADER_SIZE <= len(command) <= MAX_COMMAND or int.from_bytes(command[2:6], "big") != len(command):
        return RC.TPM_RC_COMMAND_SIZE
    return None


def take_command(buffer: bytearray) -> bytes | None:
    """Cut the only command out of ``buffer``; None if it is not whole yet.

    Its sender waits for the answer before the next one: RemoteProtocolError for bytes behind it, as for a size field
    out of bounds.
    """
    if len(buffer) < HEADER_SIZE:
        return None
    size = int.from_bytes(buffer[2:6], "big")
    if not HEADER_SIZE <= size <= MAX_COMMAND or len(buffer) > size:
        raise RemoteProtocolError(f"a TPM command says {size} bytes and has {len(buffer)}")
    if len(buffer) < size:
        return None
    command = bytes(buffer)
    buffer.clear()
    return command


def command_code(command: bytes) -> int:
    """The command code, 0 if there is none."""
    return int.from_bytes(command[6:10], "big")


def response_code(response: bytes) -> int:
    """The response code."""
    return int.from_bytes(response[6:10], "big")


def parse_response(response: bytes) -> tuple[int, bytes]:
    """(response code, bytes after the header); RemoteProtocolError if the frame is malformed."""
    if len(response) < HEADER_SIZE or int.from_bytes(response[2:6], "big") != len(response):
        raise RemoteProtocolError(f"a TPM response of {len(response)} bytes does not have the size it says")
    return response_code(response), response[HEADER_SIZE:]


def sized(data: bytes) -> bytes:
    """A TPM2B: u16 length and the bytes."""
    return struct.pack(">H", len(data)) + data


def command(code: int, *parts: bytes, handles: tuple[int, ...] = (), auths: int = 0, password: bytes = b"") -> bytes:
    """A command: handles, ``auths`` times a password session (Part 1, 19.4) with ``password``, then parameters."""
    body = b"".join(handle.to_bytes(4, "big") for handle in handles)
    if auths:
        session = TPM_RS_PW.to_bytes(4, "big") + sized(b"") + b"\x00" + sized(password)
        body += struct.pack(">I", len(session) * auths) + session * auths
    body += b"".join(parts)
    tag = TPM_ST_SESSIONS if auths else TPM_ST_NO_SESSIONS
    return HEADER.pack(tag, HEADER_SIZE + len(body), code) + body


def parameters(body: bytes, handles: int = 0) -> bytes:
    """The parameters of a successful response to a command with sessions: after handles and parameterSize."""
    start = 4 * handles
    size = int.from_bytes(body[start : start + 4], "big")
    return body[start + 4 : start + 4 + size]


def startup(kind: int = TPM_SU_CLEAR) -> bytes:
    """TPM2_Startup (Part 3, 9.3)."""
    return command(CC.TPM2_Startup, struct.pack(">H", kind))


def shutdown(kind: int = TPM_SU_CLEAR) -> bytes:
    """TPM2_Shutdown (Part 3, 9.4)."""
    return command(CC.TPM2_Shutdown, struct.pack(">H", kind))


def stir_random(data: bytes) -> bytes:
    """TPM2_StirRandom (Part 3, 16.2), at most 128 bytes."""
    return command(CC.TPM2_StirRandom, sized(data))


def get_random(count: int) -> bytes:
    """TPM2_GetRandom (Part 3, 16.1)."""
    return command(CC.TPM2_GetRandom, struct.pack(">H", count))


def get_capability(capability: int, first: int, count: int) -> bytes:
    """TPM2_GetCapability (Part 3, 30.2)."""
    return command(CC.TPM2_GetCapability, struct.pack(">III", capability, first, count))


def read_clock() -> bytes:
    """TPM2_ReadClock (Part 3, 29.1)."""
    return command(CC.TPM2_ReadClock)


def create_primary(hierarchy: int, public: bytes) -> bytes:
    """TPM2_CreatePrimary (Part 3, 24.1) with empty auth, data and PCR selection; ``public`` is a TPMT_PUBLIC."""
    sensitive = sized(sized(b"") + sized(b""))
    rest = sensitive + sized(public) + sized(b"") + struct.pack(">I", 0)
    return command(CC.TPM2_CreatePrimary, rest, handles=(hierarchy,), auths=1)


def flush_context(handle: int) -> bytes:
    """TPM2_FlushContext (Part 3, 28.4)."""
    return command(CC.TPM2_FlushContext, struct.pack(">I", handle))


def evict_control(transient: int, persistent: int) -> bytes:
    """TPM2_EvictControl (Part 3, 28.5) by the owner with empty auth."""
    handles = (TPM_RH_OWNER, transient)
    return command(CC.TPM2_EvictControl, struct.pack(">I", persistent), handles=handles, auths=1)


def pcr_read(selection: bytes) -> bytes:
    """TPM2_PCR_Read (Part 3, 22.4); ``selection``: TPML_PCR_SELECTION."""
    return command(CC.TPM2_PCR_Read, selection)


def quote(key: int, nonce: bytes, selection: bytes) -> bytes:
    """TPM2_Quote (Part 3, 18.4) by a key with empty auth and a scheme of its own."""
    null = struct.pack(">H", TPM_ALG_NULL)
    return command(CC.TPM2_Quote, sized(nonce), null, selection, handles=(key,), auths=1)


def pcr_selection(banks: dict[int, list[int]]) -> bytes:
    """TPML_PCR_SELECTION (Part 2, 10.9.7): hash algorithm -> PCRs below 24."""
    found = struct.pack(">I", len(banks))
    for bank, pcrs in banks.items():
        found += struct.pack(">HB", bank, 3) + sum(1 << pcr for pcr in pcrs).to_bytes(3, "little")
    return found


def read_public(handle: int) -> bytes:
    """TPM2_ReadPublic (Part 3, 12.4)."""
    return command(CC.TPM2_ReadPublic, handles=(handle,))


def hierarchy_change_auth(hierarchy: int, new: bytes, old: bytes = b"") -> bytes:
    """TPM2_HierarchyChangeAuth (Part 3, 24.8)."""
    return command(CC.TPM2_HierarchyChangeAuth, sized(new), handles=(hierarchy,), auths=1, password=old)


def nv_define_space(index: int, attributes: int, size: int, authority: int = TPM_RH_PLATFORM) -> bytes:
    """TPM2_NV_DefineSpace (Part 3, 31.3): empty auth and policy, SHA-256 names."""
    public = struct.pack(">IHI", index, TPM_ALG_SHA256, attributes) + sized(b"") + struct.pack(">H", size)
    return command(CC.TPM2_NV_DefineSpace, sized(b""), sized(public), handles=(authority,), auths=1)


def nv_write(index: int, offset: int, data: bytes, authority: int = TPM_RH_PLATFORM) -> bytes:
    """TPM2_NV_Write (Part 3, 31.7), at most TPM_PT_NV_BUFFER_MAX bytes."""
    return command(CC.TPM2_NV_Write, sized(data), struct.pack(">H", offset), handles=(authority, index), auths=1)


def nv_read_public(index: int) -> bytes:
    """TPM2_NV_ReadPublic (Part 3, 31.6)."""
    return command(CC.TPM2_NV_ReadPublic, handles=(index,))


def nv_read(index: int, offset: int, size: int) -> bytes:
    """TPM2_NV_Read (Part 3, 31.13) with the index's own empty auth."""
    return command(CC.TPM2_NV_Read, struct.pack(">HH", size, offset), handles=(index, index), auths=1)
