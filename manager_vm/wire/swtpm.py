"""swtpm's control protocol as bytes: commands to it, answers from it (swtpm_ioctls(3); QEMU tpm_ioctl.h).

Big-endian u32 command, then a fixed structure; the answer starts with a u32 TPM result, 0 = success.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from manager_vm.errors import RemoteProtocolError, SwtpmRefusedError

MAX_BLOB = 256 << 10  # bytes; measured: 1.3 to 22 kB


class Cmd(IntEnum):
    """Control commands (swtpm_ioctls(3); over a socket they are numbers)."""

    CMD_GET_CAPABILITY = 1
    CMD_INIT = 2
    CMD_SHUTDOWN = 3
    CMD_GET_TPMESTABLISHED = 4
    CMD_SET_LOCALITY = 5
    CMD_HASH_START = 6
    CMD_HASH_DATA = 7
    CMD_HASH_END = 8
    CMD_CANCEL_TPM_CMD = 9
    CMD_STORE_VOLATILE = 10
    CMD_RESET_TPMESTABLISHED = 11
    CMD_GET_STATEBLOB = 12
    CMD_SET_STATEBLOB = 13
    CMD_STOP = 14
    CMD_GET_CONFIG = 15
    CMD_SET_DATAFD = 16
    CMD_SET_BUFFERSIZE = 17
    CMD_GET_INFO = 18


class Blob(IntEnum):
    """State blob types (PTM_BLOB_TYPE_*)."""

    PERMANENT = 1
    VOLATILE = 2
    SAVESTATE = 3


PTM_STATE_FLAG_DECRYPTED = 1
ABSENT = 0x800  # TPM result of GET_STATEBLOB for a blob that is not there (measured)
RESULT_SIZE = 4
BLOB_HEAD = struct.Struct(">IIII")  # result, flags, total length, length


@dataclass(frozen=True, slots=True)
class BlobHead:
    """What comes before the data of a state blob."""

    result: int
    flags: int
    length: int


def plain(command: Cmd) -> bytes:
    """A command without arguments."""
    return struct.pack(">I", command)


def init(flags: int = 0) -> bytes:
    """CMD_INIT; flag 1 deletes the volatile state."""
    return struct.pack(">II", Cmd.CMD_INIT, flags)


def set_locality(locality: int) -> bytes:
    """CMD_SET_LOCALITY: one byte, padded to four."""
    return struct.pack(">IB3x", Cmd.CMD_SET_LOCALITY, locality)


def get_stateblob(kind: Blob) -> bytes:
    """CMD_GET_STATEBLOB: decrypted, from offset 0; the whole blob comes in one answer."""
    return struct.pack(">IIII", Cmd.CMD_GET_STATEBLOB, PTM_STATE_FLAG_DECRYPTED, kind, 0)


def set_stateblob(kind: Blob, flags: int, data: bytes) -> bytes:
    """CMD_SET_STATEBLOB: flags, type, length, data."""
    return struct.pack(">IIII", Cmd.CMD_SET_STATEBLOB, flags, kind, len(data)) + data


def check_result(answer: bytes, what: str) -> None:
    """SwtpmError unless the answer begins with result 0."""
    if len(answer) < RESULT_SIZE:
        raise RemoteProtocolError(f"swtpm's answer to {what} is cut short")
    result = int.from_bytes(answer[:RESULT_SIZE], "big")
    if result:
        raise SwtpmRefusedError(f"swtpm refused {what} with result {result:#x}", what)


def parse_blob_head(answer: bytes) -> BlobHead:
    """The head of GET_STATEBLOB's answer; lengths are bounded before anybody reads on."""
    if len(answer) != BLOB_HEAD.size:
        raise RemoteProtocolError("swtpm's answer to GET_STATEBLOB is cut short")
    result, flags, total, length = BLOB_HEAD.unpack(answer)
    if result == 0 and (total != length or length > MAX_BLOB):
        raise RemoteProtocolError(f"swtpm announced a state blob of {total} bytes in pieces of {length}")
    return BlobHead(result, flags, length if result == 0 else 0)
