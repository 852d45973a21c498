"""What is made in a new vTPM before any guest sees it: EKs and their certificates; and what firmware does at power-on.

EK Names are recorded here, before any guest access; nothing else is ever certified.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum, auto

from manager_vm.errors import SwtpmError
from manager_vm.keys.ek_ca import EkCa
from manager_vm.trust import templates
from manager_vm.trust.templates import CHAIN_INDEX, EK_TEMPLATES, EkTemplate
from manager_vm.wire import tpm
from manager_vm.wire.tpm import RC, Tpm

# TPMA_NV (Part 2, 13.4): PPWRITE, WRITEDEFINE, PPREAD, OWNERREAD, AUTHREAD, NO_DA, PLATFORMCREATE
_CERTIFICATE_ATTRIBUTES = 1 << 0 | 1 << 13 | 1 << 16 | 1 << 17 | 1 << 18 | 1 << 25 | 1 << 30
_NV_CHUNK = 1024  # bytes, TPM_PT_NV_BUFFER_MAX of libtpms
_HASHES = {templates.TPM_ALG_SHA256: "sha256", templates.TPM_ALG_SHA384: "sha384"}


@dataclass(frozen=True, slots=True)
class Manufactured:
    """By key kind: TPM Names of the EKs (nameAlg || digest) and their certificates (DER)."""

    ek_names: dict[str, bytes]
    certificates: dict[str, bytes]


def demand(device: Tpm, command: bytes) -> bytes:
    """Run a command of ours that must succeed; the response body. TPM_RC_RETRY is tried once more (DA, measured)."""
    rc, body = tpm.parse_response(device.execute(command))
    if rc == RC.TPM_RC_RETRY:
        rc, body = tpm.parse_response(device.execute(command))
    if rc != RC.TPM_RC_SUCCESS:
        raise SwtpmError(f"the vTPM refused command {tpm.command_code(command):#x} with TPM_RC {rc:#x}")
    return body


def manufacture(device: Tpm, ca: EkCa) -> Manufactured:
    """Make EKs and certificates in a TPM that is INITed and empty; ends with an orderly shutdown."""
    demand(device, tpm.startup())
    names: dict[str, bytes] = {}
    certificates: dict[str, bytes] = {}
    for template in EK_TEMPLATES:
        public = _make_ek(device, template)
        names[template.kind] = name_of(public)
        certificates[template.kind] = ca.issue(templates.public_key(public))
        _write_certificate(device, template.nv_index, certificates[template.kind])
    _write_certificate(device, CHAIN_INDEX, ca.certificate)
    orderly_shutdown(device)
    return Manufactured(names, certificates)


class Firmware(Enum):
    """Who does what firmware does with a TPM after _TPM_Init."""

    OURS = auto()  # the guest's sees no TPM: its channel is there for its kernel alone
    GUESTS = auto()  # it starts the TPM up, measures, and closes the platform hierarchy


def power_on(device: Tpm, platform_auth: bytes) -> None:
    """What firmware does after _TPM_Init: Startup(CLEAR), then a platformAuth that the guest never learns.

    Without it a guest could ChangeEPS, ChangePPS or undefine its EK certificates (Part 1, 13.4: platform hierarchy).
    """
    demand(device, tpm.startup())
    demand(device, tpm.hierarchy_change_auth(tpm.TPM_RH_PLATFORM, platform_auth))


def stir(device: Tpm, fresh: bytes) -> None:
    """Random numbers of its own for one that was restored (Part 3, 16.2). One that a guest's firmware has not started
    up yet has given out none, and draws fresh ones at its Startup.
    """
    command = tpm.stir_random(fresh)
    if tpm.response_code(device.execute(command)) != RC.TPM_RC_INITIALIZE:
        demand(device, command)


def orderly_shutdown(device: Tpm) -> None:
    """TPM2_Shutdown(CLEAR), so that the next start does not count a dictionary-attack strike.

    A TPM that was never started, or failed its self test, has nothing to shut down: its answer is not looked at.
    """
    device.execute(tpm.shutdown())


def name_of(public: bytes) -> bytes:
    """The Name of a TPMT_PUBLIC (Part 1, 16): nameAlg || digest of the public area."""
    name_alg = int.from_bytes(public[2:4], "big")
    return public[2:4] + hashlib.new(_HASHES[name_alg], public).digest()


def _make_ek(device: Tpm, template: EkTemplate) -> bytes:
    """Create the EK, forget the object again, return its TPMT_PUBLIC."""
    body = demand(device, tpm.create_primary(tpm.TPM_RH_ENDORSEMENT, template.public))
    handle = int.from_bytes(body[:4], "big")
    parameters = tpm.parameters(body, handles=1)
    size = int.from_bytes(parameters[:2], "big")
    demand(device, tpm.flush_context(handle))
    return parameters[2 : 2 + size]


def _write_certificate(device: Tpm, index: int, certificate: bytes) -> None:
    demand(device, tpm.nv_define_space(index, _CERTIFICATE_ATTRIBUTES, len(certificate)))
    for offset in range(0, len(certificate), _NV_CHUNK):
        demand(device, tpm.nv_write(index, offset, certificate[offset : offset + _NV_CHUNK]))
