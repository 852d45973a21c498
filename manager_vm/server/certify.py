"""The verb ``certify``: what vouches for an AK of a vTPM, by the hierarchy of its group."""

from __future__ import annotations

from typing import Any

from manager_vm.errors import ConfigError, UnknownVtpmError
from manager_vm.keys import hierarchy
from manager_vm.keys.hierarchy import Hardware, Kind, Subject, independent
from manager_vm.server import groups
from manager_vm.store.manifest import Manifest
from manager_vm.store.records import VtpmRecord
from manager_vm.trust import tpm_structures, vak
from manager_vm.vtpm import properties
from manager_vm.vtpm.registry import Registry
from manager_vm.wire.channel import Reason

_PERSISTENT = range(0x81000000, 0x81800000)  # what a guest's owner keeps in its TPM (Part 2, 7.4)


class Certifier:
    """``patience``: seconds to wait for the command that the vTPM executes."""

    def __init__(self, manifest: Manifest, registry: Registry, hardware: Hardware, patience: float) -> None:
        self._manifest = manifest
        self._registry = registry
        self._hardware = hardware
        self._patience = patience

    def certify(self, args: dict[str, Any]) -> dict[str, Any]:
        """{hierarchy, credential}, or {hierarchy, request} where an outside CA has to be asked first.

        The AK's public area is read from the vTPM itself: what a guest says of it counts for nothing.
        """
        name, handle, group, response = (args.get(key) for key in ("name", "ak", "group", "response"))
        if not isinstance(name, str) or not isinstance(handle, int) or handle not in _PERSISTENT:
            raise ConfigError("name a vTPM and the persistent handle of its AK, 0x81000000 to 0x817fffff")
        if response is not None and not isinstance(response, bytes):
            raise ConfigError("the outside CA's response must be the bytes of its file")
        vtpm = self._registry.get(name, group if isinstance(group, str) else None)
        with vtpm.changing(Reason.QUIESCED, self._patience):
            area = properties.read_public(vtpm, handle)
        contents = self._manifest.contents
        record = contents.vtpms.get(vtpm.uuid)
        if record is None:
            raise UnknownVtpmError(f"vTPM {name!r} has just been destroyed")
        ca = contents.issuer(record)
        return self._issue(_subject(record, area, ca), groups.hierarchy(contents, record.group), response)

    def _issue(self, subject: Subject, kind: Kind, response: bytes | None) -> dict[str, Any]:
        if kind is Kind.INDEPENDENT and response is None:
            return {"hierarchy": kind.value, "request": independent.request(subject)}
        if kind is not Kind.INDEPENDENT and response is not None:
            raise ConfigError(f"the hierarchy {kind.value!r} asks no outside CA, so there is no response to it")
        made = hierarchy.of(kind).issue(subject, self._hardware, response or b"")
        return {"hierarchy": kind.value, "credential": vak.pack(made)}


def _subject(record: VtpmRecord, area: bytes, ca: bytes) -> Subject:
    """EvidenceError unless ``area`` is that of an AK."""
    ak = tpm_structures.parse_public(area)
    vak.check(ak)
    return Subject(record.uuid, ak, record.ek_names, record.certificates, ca)
