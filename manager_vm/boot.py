"""From a configuration to an opened store: lock, hardware TPM, root key, manifest, vTPMs. Everything here may refuse.

A state directory that nobody has provisioned yet is told apart (``provision``); one that misses a part later on is an
error, never made anew.
"""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass

from manager_vm import packages, recover, systemd
from manager_vm.config import Config
from manager_vm.errors import ConfigError, IntegrityError
from manager_vm.keys import approvals
from manager_vm.keys.anchor import NvAnchor
from manager_vm.keys.approvals import Images
from manager_vm.keys.enrolment import Enrolment
from manager_vm.keys.evidence import HardwareVoucher
from manager_vm.keys.hierarchy import Hardware
from manager_vm.keys.hierarchy.platform import PlatformHardware
from manager_vm.keys.hwtpm import auths
from manager_vm.keys.hwtpm.auths import Authorizations
from manager_vm.keys.hwtpm.connection import Connection
from manager_vm.keys.keyslot import Keyslot
from manager_vm.platform import Platform
from manager_vm.server.journal import Journal, open_log
from manager_vm.server.verbs import VERSION
from manager_vm.store import atomic
from manager_vm.store.manifest import Manifest
from manager_vm.store.records import Contents
from manager_vm.vtpm import swtpm
from manager_vm.vtpm.registry import Registry
from manager_vm.vtpm.run import Launcher
from manager_vm.vtpm.steps import Disk
from manager_vm.vtpm.transit import Transit

log = logging.getLogger(__name__)

_KEPT = "root-key"  # its name in systemd's store
_PATIENCE = 130.0  # seconds an operator's verb waits for a command that executes (above the command deadline)


@dataclass(frozen=True, slots=True)
class Opened:
    """What boot hands to the daemon."""

    manifest: Manifest
    images: Images
    journal: Journal
    registry: Registry
    transit: Transit
    enrolment: Enrolment
    hardware: Hardware
    voucher: HardwareVoucher


class Ground:
    """What everything stands on: programs that work, a state directory that is ours alone, the hardware TPM."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.versions, self.warnings = _check_programs(config)
        _make_directories(config)
        self._lock_fd = atomic.lock_directory(config.state_dir)
        try:
            atomic.remove_temporaries(config.state_dir)
            self._platform = Platform(config)
        except BaseException:
            os.close(self._lock_fd)
            raise
        self.tpm = self._platform.tpm
        self.vendor_ca = self._platform.vendor_ca
        self.event_log = self._platform.event_log

    def close(self) -> None:
        """Let go of the TPM and the directory."""
        self._platform.close()
        os.close(self._lock_fd)


def open_manager(ground: Ground) -> Opened:
    """Open the state directory and take up all vTPMs."""
    config = ground.config
    manifest, images, authorizations = _open_manifest(config, ground.tpm)
    contents = manifest.contents
    _check_uids(config, contents)
    recover.tidy(config.state_dir)
    ground.warnings += [recover.warning(each) for each in contents.recovered]
    known = len(ground.warnings)
    journal = Journal(open_log(config.state_dir, contents.audit, ground.warnings), manifest)
    journal.start(VERSION, broken=len(ground.warnings) > known)
    disk = _disk(config)
    registry = Registry(
        manifest,
        disk,
        uid_base=config.uid_base,
        limit=config.max_vtpms,
        patience=_PATIENCE,
    )
    registry.recover()
    enrolment = Enrolment(ground.tpm, authorizations, manifest)
    hardware = PlatformHardware(ground.tpm, authorizations, manifest)
    voucher = HardwareVoucher(ground.tpm, authorizations, images, manifest, ground.event_log)
    return Opened(manifest, images, journal, registry, Transit(manifest, registry, disk), enrolment, hardware, voucher)


def _check_programs(config: Config) -> tuple[dict[str, str], list[str]]:
    """Versions of swtpm and libtpms, and what is wrong with them."""
    installed = packages.installed()
    versions = {"swtpm": swtpm.capabilities(config.swtpm).version, "libtpms": installed.get("libtpms0", "")}
    warnings = packages.known_vulnerable(installed)
    if warnings and config.strict:
        raise ConfigError(
            "; ".join(warnings) + "; install the fixed versions, or set strict = false to run all the same"
        )
    for warning in warnings:
        log.warning("%s", warning)
    return versions, warnings


def _make_directories(config: Config) -> None:
    for path in (config.run_dir, config.state_dir, config.state_dir / "blobs", config.state_dir / "runs"):
        with atomic.store_errors(f"create {path}"):
            ours = not path.exists() or path != config.run_dir
            path.mkdir(parents=True, exist_ok=True)
            # a vTPM passes through, and lists nothing; of somebody else's directory only that much is changed
            path.chmod(0o711 if ours else stat.S_IMODE(path.stat().st_mode) | 0o011)


def _check_uids(config: Config, contents: Contents) -> None:
    """ConfigError where vTPMs were made by a manager that was not root: their uids could be anybody's, or root's."""
    if _own_uids(config) and any(record.uid < config.uid_base for record in contents.vtpms.values()):
        raise ConfigError(
            f"{config.state_dir} was made by a manager that was not root; run it as that user, or use another directory"
        )


def _own_uids(config: Config) -> bool:
    return os.geteuid() == 0 and config.uid_base > 0


def _open_manifest(config: Config, tpm: Connection) -> tuple[Manifest, Images, Authorizations]:
    """Unseal (or take what the daemon before this one has unsealed), then find the one true manifest."""
    state = config.state_dir
    slot = Keyslot(state / "keyslot", tpm)
    authority, srk = slot.read().authority, slot.read().srk
    kept, found = systemd.kept(_KEPT), approvals.load(state / "approvals", authority)
    if kept is not None:
        root = slot.retained(kept, found.approvals)
    else:
        root = slot.open(found.approvals, found.complaints, lambda secret: systemd.keep(_KEPT, secret))
    authorizations = auths.derive(root, srk)
    manifest = Manifest.load(state, root, NvAnchor(tpm, authorizations.anchor))
    if (manifest.contents.owner, manifest.contents.authority) != (srk, authority.der):
        raise IntegrityError("the manifest and the keyslot do not belong together; restore the state disk whole")
    return manifest, Images(state / "approvals", tpm, authorizations, authority), authorizations


def _disk(config: Config) -> Disk:
    launcher = Launcher(
        runs=config.state_dir / "runs",
        binary=config.swtpm,
        deadline=config.command_deadline,
        memory_mib=config.vtpm_memory_mib,
        own_uids=_own_uids(config),
    )
    return Disk(config.state_dir / "blobs", launcher)
