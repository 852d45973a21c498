"""A recovery that is cut off anywhere, at the TPM or at the disk, is continued; and one manager comes of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import pytest

from manager_vm import provision, recover
from manager_vm.crypto import Key
from manager_vm.errors import HardwareTpmError, UnsealError
from manager_vm.keys import approvals
from manager_vm.keys.anchor import NvAnchor
from manager_vm.keys.hwtpm import auths, nv, ownership
from manager_vm.keys.hwtpm.connection import Connection
from manager_vm.keys.keyslot import Keyslot
from manager_vm.protocol.lifecycle import State
from manager_vm.server.reception import Order
from manager_vm.store import manifest as store_manifest
from manager_vm.store import sealed
from manager_vm.store.manifest import Manifest, Step
from manager_vm.store.records import Contents, VtpmKeys, VtpmRecord
from manager_vm.trust import approval, operator, policy, recovery
from manager_vm.trust.operator import Role
from manager_vm.trust.signing import SigningKey, VerifyKey
from manager_vm.vtpm.statefile import StateFile
from tests.disks import Disk
from tests.integration.test_hwtpm import Bus

AUTHORITY, ALICE, HOLDER = SigningKey.create(), SigningKey.create(), SigningKey.create()
ZERO = dict.fromkeys(policy.BOUND_PCRS, bytes(32))
APPROVAL = approval.approve(3, "now", ZERO, AUTHORITY)
KEY = Key(bytes(range(32)))
REVOKED = 0b101


class Place:
    """A state directory and the TPM of the platform it is in."""

    def __init__(self, state: Path, hwtpm: Path) -> None:
        self.state = state
        self.bus = Bus(hwtpm)
        self.connection = Connection(self.bus)

    def close(self) -> None:
        self.connection.close()
        self.bus.standin.close()

    def reset(self) -> None:
        """A power cycle, and a manager that starts anew."""
        self.connection.close()
        self.bus.cut_after = -1
        self.bus.power_cycle()
        self.connection = Connection(self.bus)

    def waiting(self) -> recover.Waiting | None:
        return recover.find(self.state, self.connection)

    def recover(self, waiting: recover.Waiting) -> None:
        offer = waiting.offer
        ordered = recovery.order(offer.manager, offer.old.hex(), offer.new.hex(), AUTHORITY, revoked=REVOKED)
        receiver = VerifyKey.from_der(offer.key)
        handover = recovery.hand_over(HOLDER, offer.stanza, offer.manager, ordered, receiver)
        waiting.perform(ordered, [], handover)

    def manifest(self) -> Manifest:
        """As a start of the manager opens it."""
        slot = Keyslot(self.state / "keyslot", self.connection)
        found = approvals.load(self.state / "approvals", AUTHORITY.public)
        root = slot.open(found.approvals)
        return Manifest.load(self.state, root, NvAnchor(self.connection, auths.derive(root, slot.read().srk)))


class Stop(BaseException):
    """The manager is gone."""


def _stop_when_anchored(step: Step) -> None:
    if step is Step.ANCHORED:
        raise Stop


@contextmanager
def at(state: Path, hwtpm: Path) -> Iterator[Place]:
    place = Place(state, hwtpm)
    try:
        yield place
    finally:
        place.close()


def add(contents: Contents) -> Contents:
    record = VtpmRecord("uuid-1", "web", State.PARKED, 1000, "uuid-1.blob", bytes(32), {}, {}, resume=True)
    return contents.with_vtpm(record, VtpmKeys(KEY))


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``state``: of a manager with a recipient and a vTPM; ``hwtpm``: a TPM that nobody has used."""
    found = tmp_path_factory.mktemp("disks")
    state = found / "state"
    for part in ("blobs", "runs"):
        (state / part).mkdir(parents=True)
    with at(state, found / "old") as place:
        named = recovery.name_recipient(HOLDER.public, 1, AUTHORITY)
        enrolment = operator.enroll("alice", ALICE.public, Role.ADMIN, AUTHORITY)
        order = Order(AUTHORITY.public.der, [enrolment], [APPROVAL], named)
        provision.perform(state, place.connection, order)
        place.manifest().commit(add)
    with at(state, found / "hwtpm"):
        pass
    return found


@pytest.fixture
def place(disks: Path, tmp_path: Path) -> Iterator[Place]:
    shutil.copytree(disks / "state", tmp_path / "state")
    shutil.copytree(disks / "hwtpm", tmp_path / "hwtpm")
    with at(tmp_path / "state", tmp_path / "hwtpm") as made:
        yield made


def attempt(place: Place) -> bool:
    """One start and, if it waits, one recovery; whether that was cut off."""
    try:
        waiting = place.waiting()
        if waiting is not None:
            place.recover(waiting)
    except (HardwareTpmError, UnsealError, Stop):  # the second where the cut is met while the TPM is looked at
        return True
    return False


def check(place: Place) -> None:
    """The disk is this TPM's, whole, marked once, and nothing of the recovery is left."""
    place.reset()
    assert place.waiting() is None
    manifest = place.manifest()
    contents = manifest.contents
    web = contents.vtpms["uuid-1"]
    assert (web.generation, web.state, web.resume, len(web.recovered)) == (2, State.FAILED, False, 1)
    assert contents.keys["uuid-1"].blob.reveal() == KEY.reveal()
    assert (len(contents.recovered), len(contents.revoked_platforms)) == (1, 1)
    assert contents.owner == ownership.future_srk(place.connection) != contents.revoked_platforms[0].srk
    assert nv.revoked(place.connection) & REVOKED == REVOKED
    recover.tidy(place.state)
    manifest.commit(lambda old: old.without_vtpm("uuid-1"))
    assert sorted(path.name for path in place.state.glob("manifest*")) == ["manifest"]
    place.reset()
    assert place.manifest().contents.vtpms == {}


@pytest.mark.parametrize("first", [0, *(pytest.param(each, marks=pytest.mark.full) for each in (1, 2))])
def test_a_recovery_is_finished_however_often_the_tpm_is_cut_off(
    disks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    def end(why: str) -> NoReturn:
        raise Stop(why)

    monkeypatch.setattr(store_manifest, "_end_process", end)  # where nobody can tell whether the anchor was written
    cut, finished = first, False
    while not finished:
        state = tmp_path / str(cut) / "state"
        shutil.copytree(disks / "state", state)
        shutil.copytree(disks / "hwtpm", state.with_name("hwtpm"))
        with at(state, state.with_name("hwtpm")) as place:
            place.bus.cut_after = cut
            finished = not attempt(place)
            if not finished:
                place.reset()
                assert not attempt(place)
            check(place)
        cut += 3  # commands; those between are the others' part
    assert cut > 60


@pytest.mark.parametrize("how", ["crash", "power"])
def test_a_recovery_is_finished_however_often_the_disk_is_cut_off(
    disks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(StateFile, "sync", lambda self: None)  # the TPM's own disk is not the one that fails
    fatal = 0
    while True:
        state = tmp_path / str(fatal) / "state"
        shutil.copytree(disks / "state", state)
        shutil.copytree(disks / "hwtpm", state.with_name("hwtpm"))
        with at(state, state.with_name("hwtpm")) as place:
            disk = Disk(state, fatal, how)
            with disk.inserted(monkeypatch):
                attempt(place)
            place.reset()
            assert not attempt(place)
            check(place)
        if disk.steps <= fatal:
            break
        fatal += 1
    assert fatal > 15


def test_a_commit_that_was_cut_off_before_is_gone_on_with(place: Place, disks: Path) -> None:
    """manifest.pending: nobody knows any more whether it was anchored; it must not be overwritten by the recovery."""
    with at(place.state, disks / "old") as before:
        manifest = before.manifest()
        manifest.reached = _stop_when_anchored
        with suppress(Stop):
            manifest.commit(lambda old: old.with_vtpm(add(old).vtpms["uuid-1"], VtpmKeys(KEY)))
    pending = sealed.look((place.state / "manifest.pending").read_bytes())
    assert pending.serial == sealed.look((place.state / "manifest").read_bytes()).serial + 1
    waiting = place.waiting()
    assert waiting is not None and waiting.offer.serial == pending.serial
    place.bus.cut_after = 70
    assert attempt(place)
    place.reset()
    again = place.waiting()
    assert again is not None and again.offer.serial == pending.serial
    place.recover(again)
    check(place)


def test_a_tpm_that_somebody_has_begun_to_own_is_refused_and_so_is_a_planted_recovery(place: Place) -> None:
    """Whoever prepares a TPM and a keyslot with a root key that he knows must not have it used."""
    mine = Keyslot(place.state / "mine", place.connection)
    root = mine.create(AUTHORITY.public)
    ownership.take(place.connection, auths.derive(root, mine.read().srk))
    with pytest.raises(UnsealError, match="belongs to another manager"):
        place.waiting()
    (place.state / "recovering").write_bytes((place.state / "mine").read_bytes())
    waiting = place.waiting()
    assert waiting is not None
    before = (place.state / "manifest").read_bytes(), (place.state / "keyslot").read_bytes()
    with pytest.raises(HardwareTpmError, match="belongs to another manager"):
        place.recover(waiting)
    assert before == ((place.state / "manifest").read_bytes(), (place.state / "keyslot").read_bytes())


def test_an_approval_that_the_new_tpm_has_revoked_does_not_recover(place: Place) -> None:
    ownership.find_or_make_srk(place.connection)
    nv.define_revocation(place.connection)
    nv.revoke(place.connection, None, 1 << 3)
    waiting, before = place.waiting(), (place.state / "manifest").read_bytes()
    assert waiting is not None
    with pytest.raises(UnsealError, match=r"approval 3 \(now\) is revoked, and the hardware TPM refuses it"):
        place.recover(waiting)
    assert not ownership.is_owned(place.connection) and (place.state / "manifest").read_bytes() == before
    newer = approval.approve(4, "again", ZERO, AUTHORITY)
    (place.state / "approvals/4.json").write_bytes(newer)
    place.recover(waiting)
    check(place)
