"""A small TPM resource manager: several clients on one vTPM, each with its own objects and sessions.

As the kernel's /dev/tpmrm0 does it: transient handles are virtual; when another client's turn comes, the objects and
sessions of the one before are saved (TPM2_ContextSave) and its own are loaded. What a client leaves behind is
flushed; sessions that it saved itself are its own affair. (TCG "TSS 2.0 TAB and Resource Manager", section 4.)
"""

from __future__ import annotations

import struct
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from manager_vm.wire import tpm
from manager_vm.wire.tpm import CC, RC, Tpm

_TRANSIENT, _HMAC_SESSION, _POLICY_SESSION = 0x80, 0x02, 0x03
_FIRST_VIRTUAL = 0x80FF0000
_RETRIES = 3
_AT_ONCE = 1.0  # seconds; a TPM says TPM_RC_RETRY at once, a link only when its patience is over, and that is final
_FIRST_COMMAND, _MANY = 0x11F, 0xFF


@dataclass(slots=True, eq=False)
class Space:
    """What one client has. ``objects``: virtual handle -> real handle, or saved context. ``sessions`` likewise."""

    objects: dict[int, int | bytes] = field(default_factory=dict)
    sessions: dict[int, bytes | None] = field(default_factory=dict)
    next_virtual: int = _FIRST_VIRTUAL


class _NotNow(Exception):
    """TPM_RC_RETRY to a command of our own: the vTPM does not serve now, and nothing is known of what it holds."""


class ResourceManager:
    """In front of ``device``; not thread-safe (commands take turns anyway)."""

    def __init__(self, device: Tpm) -> None:
        self._device = device
        self._current: Space | None = None  # all of its things are loaded, and nobody else's
        self._loaded: list[Space] = []  # something of theirs may be loaded
        self._abandoned: list[int] = []  # handles whose client is gone
        self._attributes: dict[int, tuple[int, bool]] = {}

    def start(self) -> None:
        """Flush what an earlier front end left behind when it was killed."""
        with suppress(_NotNow):
            for kind in (_TRANSIENT, _HMAC_SESSION):
                for handle in self._list(tpm.TPM_CAP_HANDLES, kind << 24):
                    self._run(tpm.flush_context(handle))

    def execute(self, space: Space, command: bytes) -> bytes:
        """One command of one client. TPM_RC_RETRY: the vTPM does not serve now; every client keeps what it has."""
        if tpm.check_frame(command) is not None:
            return tpm.error_response(RC.TPM_RC_COMMAND_SIZE)
        try:
            return self._execute(space, command)
        except _NotNow:
            return tpm.error_response(RC.TPM_RC_RETRY)

    def _execute(self, space: Space, command: bytes) -> bytes:
        self._switch(space)
        code = tpm.command_code(command)
        if code == CC.TPM2_FlushContext:
            return self._flush(space, command)
        if code == CC.TPM2_GetCapability:
            return self._capability(space, command)
        inputs, has_output = self._command_attributes(code)
        real = self._to_real(space, command, inputs)
        if isinstance(real, int):
            return tpm.error_response(real)
        response = self._try(real)
        if tpm.response_code(response) != RC.TPM_RC_SUCCESS:
            return response
        if code == CC.TPM2_ContextSave:
            self._saved(space, command)
        return self._from_real(space, response) if has_output else response

    def leave(self, space: Space) -> None:
        """The client is gone: flush what it had, now or, if the vTPM does not serve, before the next client's turn."""
        held = list(space.sessions) + [real for real in space.objects.values() if isinstance(real, int)]
        if self._current is space:
            self._current = None
        if space in self._loaded:
            self._loaded.remove(space)
        self._abandoned += held
        with suppress(_NotNow):
            self._flush_abandoned()

    def _flush_abandoned(self) -> None:
        while self._abandoned:
            self._run(tpm.flush_context(self._abandoned[-1]))
            self._abandoned.pop()

    def _switch(self, space: Space) -> None:
        if self._current is space:
            return
        self._flush_abandoned()
        self._current = None
        for other in [each for each in self._loaded if each is not space]:
            self._save(other)
            self._loaded.remove(other)
        if space not in self._loaded:
            self._loaded.append(space)
        self._load(space)
        self._current = space

    def _save(self, space: Space) -> None:
        for virtual, real in list(space.objects.items()):
            context = self._context_save(real) if isinstance(real, int) else real
            if isinstance(real, int) and context:
                self._run(tpm.flush_context(real))
            _keep(space.objects, virtual, context)
        for handle in list(space.sessions):
            _keep(space.sessions, handle, self._context_save(handle))

    def _load(self, space: Space) -> None:
        for virtual, context in list(space.objects.items()):
            real = self._context_load(context) if isinstance(context, bytes) else context
            _keep(space.objects, virtual, real)
        for handle, saved in list(space.sessions.items()):
            if saved is not None and self._context_load(saved):
                space.sessions[handle] = None
            elif saved is not None:
                del space.sessions[handle]

    def _context_save(self, handle: int) -> bytes | None:
        """The saved context, None if the object is gone (a sequence completed, a session that ended by its use)."""
        rc, body = tpm.parse_response(self._run(tpm.command(CC.TPM2_ContextSave, handles=(handle,))))
        return body if rc == RC.TPM_RC_SUCCESS else None

    def _context_load(self, context: bytes) -> int | None:
        rc, body = tpm.parse_response(self._run(tpm.command(CC.TPM2_ContextLoad, context)))
        return int.from_bytes(body[:4], "big") if rc == RC.TPM_RC_SUCCESS else None

    def _to_real(self, space: Space, command: bytes, inputs: int) -> bytes | int:
        """The command with real handles, or the TPM_RC for a handle that is not this client's."""
        out = bytearray(command)
        for number in range(inputs):
            start = tpm.HEADER_SIZE + 4 * number
            handle = int.from_bytes(command[start : start + 4], "big")
            if handle >> 24 != _TRANSIENT:
                continue
            real = space.objects.get(handle)
            if not isinstance(real, int):
                return RC.TPM_RC_REFERENCE_H0 + number
            out[start : start + 4] = real.to_bytes(4, "big")
        return bytes(out)

    def _from_real(self, space: Space, response: bytes) -> bytes:
        """The response with a virtual handle; new sessions are noted."""
        handle = int.from_bytes(response[10:14], "big")
        kind = handle >> 24
        if kind in (_HMAC_SESSION, _POLICY_SESSION):
            space.sessions[handle] = None
        if kind != _TRANSIENT:
            return response
        for gone in [old for old, real in space.objects.items() if real == handle]:
            del space.objects[gone]  # a sequence that was completed, or TPM2_Clear: the TPM gave its handle away again
        while (virtual := space.next_virtual) in space.objects:
            space.next_virtual = _FIRST_VIRTUAL | (virtual + 1) & 0xFFFF
        space.next_virtual = _FIRST_VIRTUAL | (virtual + 1) & 0xFFFF
        space.objects[virtual] = handle
        return response[:10] + virtual.to_bytes(4, "big") + response[14:]

    def _saved(self, space: Space, command: bytes) -> None:
        """The client saved a session itself: it is not loaded any more and not ours to flush."""
        space.sessions.pop(int.from_bytes(command[10:14], "big"), None)

    def _flush(self, space: Space, command: bytes) -> bytes:
        handle = int.from_bytes(command[10:14], "big")
        real: int | bytes | None = handle
        if handle >> 24 == _TRANSIENT:
            real = space.objects.get(handle)
        if not isinstance(real, int):
            return tpm.error_response(RC.TPM_RC_HANDLE | 1 << 8 | 0x40)  # parameter 1
        response = self._run(tpm.flush_context(real) if real != handle else command)
        space.objects.pop(handle, None)
        space.sessions.pop(handle, None)
        return response

    def _capability(self, space: Space, command: bytes) -> bytes:
        """Handle lists of transient objects and loaded sessions show the client's own only."""
        if len(command) != 22:
            return self._run(command)
        capability, first, count = struct.unpack_from(">III", command, 10)
        kind = first >> 24
        if capability != tpm.TPM_CAP_HANDLES or kind not in (_TRANSIENT, _HMAC_SESSION):
            return self._run(command)
        own = sorted(space.objects if kind == _TRANSIENT else space.sessions)
        own = [handle for handle in own if handle >= first or kind != _TRANSIENT]
        found = own[:count]
        body = struct.pack(f">BII{len(found)}I", len(own) > count, tpm.TPM_CAP_HANDLES, len(found), *found)
        return tpm.HEADER.pack(tpm.TPM_ST_NO_SESSIONS, tpm.HEADER_SIZE + len(body), 0) + body

    def _command_attributes(self, code: int) -> tuple[int, bool]:
        """(handles in the command, whether the response has one), as the TPM itself says (TPMA_CC, Part 2, 8.9)."""
        if not self._attributes:
            for value in self._list(tpm.TPM_CAP_COMMANDS, _FIRST_COMMAND):
                self._attributes[value & 0xFFFF] = (value >> 25 & 7, bool(value >> 28 & 1))
        return self._attributes.get(code, (0, False))

    def _list(self, capability: int, first: int) -> list[int]:
        rc, body = tpm.parse_response(self._run(tpm.get_capability(capability, first, _MANY)))
        if rc != RC.TPM_RC_SUCCESS:
            return []
        count = int.from_bytes(body[5:9], "big")
        return [value for (value,) in struct.iter_unpack(">I", body[9 : 9 + 4 * count])]

    def _run(self, command: bytes) -> bytes:
        """Execute a command of our own, or one that must not be half done."""
        response = self._try(command)
        if tpm.response_code(response) == RC.TPM_RC_RETRY:
            raise _NotNow
        return response

    def _try(self, command: bytes) -> bytes:
        """Execute; what the TPM answers once after each start (TPM_RC_RETRY, dictionary attack logic) is repeated."""
        began = time.monotonic()
        response = self._device.execute(command)
        for _ in range(_RETRIES):
            if tpm.response_code(response) != RC.TPM_RC_RETRY or time.monotonic() - began > _AT_ONCE:
                break
            response = self._device.execute(command)
        return response


def _keep(table: dict[int, Any], key: int, value: int | bytes | None) -> None:
    if value is None:
        del table[key]
    else:
        table[key] = value
