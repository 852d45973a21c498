"""swtpm's control protocol as bytes, both sides of it (swtpm_ioctls(3); QEMU tpm_ioctl.h).

Big-endian u32 command, then a fixed structure; the answer starts with a u32 TPM result, 0 = success. The first part
is the client's (who drives a swtpm), the second the server's (who stands in for one before QEMU's tpm-emulator).
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass, field, replace
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
PTM_INIT_FLAG_DELETE_VOLATILE = 1  # QEMU sets it for an arriving VM only: its state was loaded before
ABSENT = 0x800  # TPM result of GET_STATEBLOB for a blob that is not there (measured)
TPM_BAD_PARAMETER, TPM_FAIL, TPM_BAD_ORDINAL, TPM_BAD_LOCALITY = 0x03, 0x09, 0x0A, 0x3D  # TPM 1.2 codes, as swtpm's
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
    """CMD_INIT; PTM_INIT_FLAG_DELETE_VOLATILE deletes a stored volatile state."""
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


def set_buffersize(size: int) -> bytes:
    """CMD_SET_BUFFERSIZE in bytes, of a stopped TPM; 0 only asks."""
    return struct.pack(">II", Cmd.CMD_SET_BUFFERSIZE, size)


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


# -- the server's side ------------------------------------------------------------------------------------------------

# what a stand-in serves: bytes of argument after the command, its bit in the capabilities (PTM_CAP_*)
SERVED: dict[Cmd, tuple[int, int]] = {
    Cmd.CMD_GET_CAPABILITY: (0, 0),
    Cmd.CMD_INIT: (4, 1 << 0),
    Cmd.CMD_SHUTDOWN: (0, 1 << 1),
    Cmd.CMD_GET_TPMESTABLISHED: (0, 1 << 2),
    Cmd.CMD_SET_LOCALITY: (4, 1 << 3),
    Cmd.CMD_CANCEL_TPM_CMD: (0, 1 << 5),
    Cmd.CMD_RESET_TPMESTABLISHED: (4, 1 << 7),
    Cmd.CMD_GET_STATEBLOB: (12, 1 << 8),
    Cmd.CMD_SET_STATEBLOB: (12, 1 << 9),
    Cmd.CMD_STOP: (0, 1 << 10),
    Cmd.CMD_SET_DATAFD: (0, 1 << 12),
    Cmd.CMD_SET_BUFFERSIZE: (4, 1 << 13),
}


@dataclass(frozen=True, slots=True)
class Request:
    """A control command as a server gets it.

    ``value``: flags of INIT and of both STATEBLOBs, the locality, the buffer size in bytes. ``kind``, ``data``: of a
    STATEBLOB; the data may be a whole TPM's secrets and is never shown.
    """

    command: Cmd
    value: int = 0
    kind: Blob = Blob.PERMANENT
    data: bytes = field(default=b"", repr=False)


def take_request(buffer: bytearray) -> Request | None:
    """Cut the first command off ``buffer``; None if it is not whole yet. RemoteProtocolError: nobody can go on."""
    if len(buffer) < 4:
        return None
    code = int.from_bytes(buffer[:4], "big")
    if code not in SERVED:
        raise RemoteProtocolError(f"control command {code} is none that is served")
    command = Cmd(code)
    size = 4 + SERVED[command][0]
    if len(buffer) < size:
        return None
    request = _parse(command, bytes(buffer[4:size]))
    if command is Cmd.CMD_SET_STATEBLOB:
        length = int.from_bytes(buffer[12:16], "big")
        if length > MAX_BLOB:
            raise RemoteProtocolError(f"a state blob of {length} bytes is larger than any swtpm makes")
        if len(buffer) < size + length:
            return None
        request = replace(request, data=bytes(buffer[size : size + length]))
        size += length
    del buffer[:size]
    return request


def _parse(command: Cmd, argument: bytes) -> Request:
    if command in (Cmd.CMD_SET_LOCALITY, Cmd.CMD_RESET_TPMESTABLISHED):
        return Request(command, argument[0])
    if command not in (Cmd.CMD_GET_STATEBLOB, Cmd.CMD_SET_STATEBLOB):
        return Request(command, int.from_bytes(argument, "big"))
    flags, kind, last = struct.unpack(">III", argument)  # last: an offset, or the length of what follows
    if kind not in set(Blob) or (command is Cmd.CMD_GET_STATEBLOB and last):
        raise RemoteProtocolError(f"{command.name} of kind {kind}, offset or length {last}: there is no such blob")
    return Request(command, flags, Blob(kind))


def result(code: int = 0) -> bytes:
    """An answer that is nothing but a TPM result."""
    return struct.pack(">I", code)


def capabilities(but: Collection[Cmd] = ()) -> bytes:
    """The answer to GET_CAPABILITY: all that is SERVED ``but`` these."""
    return struct.pack(">Q", sum(bit for command, (_, bit) in SERVED.items() if command not in but))


def established(bit: bool) -> bytes:
    """The answer to GET_TPMESTABLISHED."""
    return struct.pack(">IB3x", 0, bit)


def buffersize(size: int, least: int, most: int, code: int = 0) -> bytes:
    """The answer to SET_BUFFERSIZE: a result, the size in force and its bounds, bytes."""
    return struct.pack(">IIII", code, size, least, most)


def no_blob(code: int) -> bytes:
    """The answer to GET_STATEBLOB where there is a reason to give none: a result."""
    return BLOB_HEAD.pack(code, 0, 0, 0)


def blob(data: bytes, flags: int = 0) -> bytes:
    """The answer to GET_STATEBLOB; b"" = absent. The flags belong to the data and travel with it."""
    return BLOB_HEAD.pack(0 if data else ABSENT, flags, len(data), len(data)) + data
