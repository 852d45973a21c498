"""From a configuration to an opened store: lock, root key, anchor, manifest, vTPMs. Everything here may refuse.

First start on an empty state directory: root key, then manifest and anchor are made. An interrupted first
start is repeated; a state directory that misses a part later on is an error, never made anew.
"""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from manager_vm import packages
from manager_vm.config import Config
from manager_vm.errors import ConfigError, IntegrityError, RollbackError, StoreError
from manager_vm.keys.anchor import FileAnchor
from manager_vm.keys.ek_ca import EkCa
from manager_vm.keys.keyslot import KeyFile
from manager_vm.server import provision
from manager_vm.server.journal import Journal
from manager_vm.server.verbs import VERSION
from manager_vm.store import atomic
from manager_vm.store.audit import AuditLog
from manager_vm.store.manifest import Manifest
from manager_vm.store.records import AuditHead, Contents
from manager_vm.vtpm import swtpm
from manager_vm.vtpm.registry import Registry
from manager_vm.vtpm.run import Launcher
from manager_vm.vtpm.steps import Disk

log = logging.getLogger(__name__)

_PATIENCE = 130.0  # seconds an operator's verb waits for a command that executes (above the command deadline)


@dataclass(frozen=True, slots=True)
class Opened:
    """What boot hands to the daemon. ``lock_fd`` is held until the process ends."""

    manifest: Manifest
    journal: Journal
    registry: Registry
    warnings: list[str]
    lock_fd: int


def open_manager(config: Config) -> Opened:
    """Open the state directory and take up all vTPMs."""
    warnings = _check_programs(config)
    _make_directories(config)
    lock_fd = atomic.lock_directory(config.state_dir)
    atomic.remove_temporaries(config.state_dir)
    manifest = _open_manifest(config)
    contents = manifest.contents
    _check_uids(config, contents)
    known = len(warnings)
    journal = Journal(_open_audit(config.state_dir, contents.audit, warnings), manifest)
    journal.start(VERSION, broken=len(warnings) > known)
    registry = Registry(
        manifest,
        _disk(config),
        EkCa.load(contents.ca_key, contents.ca_certificate),
        uid_base=config.uid_base,
        limit=config.max_vtpms,
        patience=_PATIENCE,
    )
    registry.recover()
    return Opened(manifest, journal, registry, warnings, lock_fd)


def _check_programs(config: Config) -> list[str]:
    swtpm.capabilities(config.swtpm)
    warnings = packages.known_vulnerable(packages.installed())
    if warnings and config.strict:
        raise ConfigError(
            "; ".join(warnings) + "; install the fixed versions, or set strict = false to run all the same"
        )
    for warning in warnings:
        log.warning("%s", warning)
    return warnings


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


def _open_manifest(config: Config) -> Manifest:
    directory = config.state_dir
    keyslot, anchor = KeyFile(directory / "rootkey"), FileAnchor(directory / "anchor")
    if anchor.exists() or (directory / "manifest").exists():
        manifest = Manifest.load(directory, keyslot.open(), anchor)
        manifest.commit(lambda contents: _provisioned(contents, config))
        return manifest
    if any(any((directory / part).iterdir()) for part in ("blobs", "runs")):
        raise RollbackError(f"{directory} holds vTPMs but no manifest and no anchor; restore the newest state disk")
    log.info("empty state directory %s: making a root key, a CA and the first manifest", directory)
    root = keyslot.open() if keyslot.exists() else keyslot.create()
    ca = EkCa.create("vTPM manager EK CA")
    first = Contents(serial=1, ca_certificate=ca.certificate, ca_key=ca.private_bytes())
    return Manifest.create(directory, root, anchor, _provisioned(first, config))


def _provisioned(contents: Contents, config: Config) -> Contents:
    """``dev`` has an authority of its own machine; every other manager waits for 'provision'."""
    if contents.authority or config.authority_dir is None:
        return contents
    new = provision.from_directory(contents, config.authority_dir)
    provision.announce(new)
    return new


def _open_audit(directory: Path, anchored: AuditHead, warnings: list[str]) -> AuditLog:
    """The audit log; one that is not what was anchored is put aside, reported, and begun anew behind the anchor."""
    try:
        return AuditLog.open(directory, anchored)
    except (IntegrityError, StoreError) as error:
        log.error("AUDIT LOG BROKEN: %s", error)
        warnings.append(f"{error}; what is left is in {directory}/audit.broken.1, a new chain says so")
        return AuditLog.restart(directory, anchored, str(error))


def _disk(config: Config) -> Disk:
    launcher = Launcher(
        runs=config.state_dir / "runs",
        binary=config.swtpm,
        deadline=config.command_deadline,
        memory_mib=config.vtpm_memory_mib,
        own_uids=_own_uids(config),
    )
    return Disk(config.state_dir / "blobs", launcher)
