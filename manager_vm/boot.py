"""From a configuration to an opened store: lock, hardware TPM, root key, manifest, vTPMs. Everything here may refuse.

A state directory that nobody has provisioned yet is told apart (``provision``); one that misses a part later on is an
error, never made anew.
"""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from manager_vm import packages, recover, systemd
from manager_vm.config import Config
from manager_vm.errors import ConfigError, IntegrityError
from manager_vm.keys import approvals, keyslot, place
from manager_vm.keys.anchor import NvAnchor
from manager_vm.keys.approvals import Images
from manager_vm.keys.enrolment import Enrolment
from manager_vm.keys.evidence import HardwareVoucher
from manager_vm.keys.hierarchy import Hardware
from manager_vm.keys.hierarchy.platform import PlatformHardware
from manager_vm.keys.place import Footing
from manager_vm.platform import Platform
from manager_vm.protocol import relocation
from manager_vm.protocol.relocation import Leaving, Start
from manager_vm.server import relocate_rules
from manager_vm.server.journal import Journal, open_log
from manager_vm.server.move_rules import Local
from manager_vm.server.verbs import VERSION
from manager_vm.store import atomic
from manager_vm.store.manifest import Manifest
from manager_vm.store.records import Contents
from manager_vm.store.relocation import unpack_place
from manager_vm.vtpm import swtpm
from manager_vm.vtpm.registry import Registry
from manager_vm.vtpm.run import Launcher
from manager_vm.vtpm.steps import Disk
from manager_vm.vtpm.transit import Transit

log = logging.getLogger(__name__)

_PATIENCE = 130.0  # seconds an operator's verb waits for a command that executes (above the command deadline)


@dataclass(frozen=True, slots=True)
class Store:
    """The opened manifest, and what this manager stands on."""

    manifest: Manifest
    images: Images
    own: Footing
    enrolment: Enrolment
    hardware: Hardware
    voucher: HardwareVoucher
    local: Local


@dataclass(frozen=True, slots=True)
class Opened:
    """The vTPMs of a manager that serves."""

    journal: Journal
    registry: Registry
    transit: Transit
    disk: Disk


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


def open_store(ground: Ground) -> Store:
    """Unseal (or take what the daemon before this one has unsealed), then find the one true manifest."""
    config, tpm = ground.config, ground.tpm
    state = config.state_dir
    slot = keyslot.of_this_platform(state, tpm)
    authority, srk = slot.read().authority, slot.read().srk
    kept, found = systemd.kept(systemd.ROOT_KEY), approvals.load(state / "approvals", authority)
    if kept is not None:
        root = slot.retained(kept, found.approvals)
    else:
        root = slot.open(found.approvals, found.complaints, lambda secret: systemd.keep(systemd.ROOT_KEY, secret))
    own = Footing(tpm, root, slot, place.authorizations(root, slot.read()))
    manifest = Manifest.load(state, root, NvAnchor(tpm, own.auths))
    _demand_ours(manifest.contents, srk, authority.der)
    images = Images(state / "approvals", tpm, own.auths, authority)
    enrolment = Enrolment(tpm, own.auths, manifest)
    hardware = PlatformHardware(tpm, own.auths, manifest)
    voucher = HardwareVoucher(tpm, own.auths, images, manifest, ground.event_log)
    local = Local(manifest, images, voucher, ground.versions)
    return Store(manifest, images, own, enrolment, hardware, voucher, local)


def has_left(store: Store) -> bool:
    """Whether this manager has left for another platform, and waits for a word from there."""
    contents = store.manifest.contents
    here = contents.owner == store.own.slot.read().srk
    return relocation.start(here=here, state=_state(contents)) is Start.LEFT


def open_manager(ground: Ground, store: Store) -> Opened:
    """Take up all vTPMs. A manager that has come with its disk is at home here from now on."""
    config, manifest = ground.config, store.manifest
    _check_uids(config, manifest.contents)
    recover.tidy(config.state_dir)
    ground.warnings += [recover.warning(each) for each in manifest.contents.recovered]
    known = len(ground.warnings)
    journal = Journal(open_log(config.state_dir, manifest.contents.audit, ground.warnings), manifest)
    journal.start(VERSION, broken=len(ground.warnings) > known)
    _settle(config.state_dir, store)
    disk = _disk(config)
    registry = Registry(
        manifest,
        disk,
        uid_base=config.uid_base,
        limit=config.max_vtpms,
        patience=_PATIENCE,
    )
    registry.recover()
    return Opened(journal, registry, Transit(manifest, registry, disk), disk)


def _settle(state: Path, store: Store) -> None:
    manifest = store.manifest
    departure = manifest.contents.departure
    if departure is not None and departure.state is Leaving.LEFT:
        found = unpack_place(departure.place)
        manifest.commit(lambda contents: place.arrived(contents, found), moves=True)
        log.warning("ARRIVED: this manager has come from another platform, with its disk")
    relocate_rules.settle_in(state, store.own, manifest.contents.owner)


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
    parts = [config.state_dir / name for name in ("blobs", "runs", "snapshots")]
    for path in (config.run_dir, config.state_dir, *parts):
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


def _demand_ours(contents: Contents, srk: bytes, authority: bytes) -> None:
    start = relocation.start(here=contents.owner == srk, state=_state(contents))
    if start is Start.ELSEWHERE or contents.authority != authority:
        raise IntegrityError("the manifest and the keyslot do not belong together; restore the state disk whole")


def _state(contents: Contents) -> Leaving | None:
    return contents.departure.state if contents.departure else None


def _disk(config: Config) -> Disk:
    launcher = Launcher(
        runs=config.state_dir / "runs",
        binary=config.swtpm,
        deadline=config.command_deadline,
        memory_mib=config.vtpm_memory_mib,
        own_uids=_own_uids(config),
    )
    return Disk(config.state_dir / "blobs", launcher, config.state_dir / "snapshots", config.snapshots)
