"""The hardware TPM against a real swtpm: sealing, approvals, anchor; listeners, cuts, and a TPM that is busy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manager_vm.crypto import Key
from manager_vm.errors import HardwareTpmError, RollbackError, StateError, SwtpmError, TakenError, UnsealError
from manager_vm.keys import identity
from manager_vm.keys.anchor import NvAnchor, Place
from manager_vm.keys.enrolment import Enrolment
from manager_vm.keys.hwtpm import attest, auths, nv, ownership, sealing
from manager_vm.keys.hwtpm.auths import Authorizations
from manager_vm.keys.hwtpm.connection import Connection
from manager_vm.keys.identity import Signer
from manager_vm.keys.keyslot import Keyslot, RootKey
from manager_vm.protocol.lifecycle import State
from manager_vm.store.manifest import Manifest
from manager_vm.store.records import Contents, VtpmRecord
from manager_vm.trust import approval, attestation_ca, local, policy, tpm_structures
from manager_vm.trust.approval import Approval
from manager_vm.trust.signing import SigningKey, VerifyKey
from manager_vm.trust.tpm_structures import NvCertify
from manager_vm.vtpm.standin import Standin
from manager_vm.wire import tpm

AUTHORITY = SigningKey.create()


class Bus:
    """The wire to a TPM: it records all, can be cut, and can answer in the TPM's place."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.standin = Standin(directory, "swtpm")
        self.seen: list[bytes] = []
        self.cut_after = -1  # commands until the wire is cut
        self.answer: Callable[[bytes], bytes | None] = lambda command: None

    def execute(self, command: bytes) -> bytes:
        self.seen.append(command)
        if self.cut_after == 0:
            raise SwtpmError("the wire is cut")
        self.cut_after -= 1
        response = self.answer(command) or self.standin.execute(command)
        self.seen.append(response)
        return response

    def power_cycle(self) -> None:
        self.standin.close()
        self.standin = Standin(self.directory, "swtpm")


class Platform:
    """A platform whose TPM this manager owns."""

    def __init__(self, directory: Path) -> None:
        self.bus = Bus(directory / "hwtpm")
        self.slot_path = directory / "keyslot"
        self.connection = Connection(self.bus)

    @property
    def slot(self) -> Keyslot:
        return Keyslot(self.slot_path, self.connection)

    def provision(self) -> RootKey:
        root = self.slot.create(AUTHORITY.public)
        ownership.take(self.connection, self.auths(root))
        return root

    def auths(self, root: Key) -> Authorizations:
        return auths.derive(root, self.slot.read().srk)

    def anchor(self, root: Key) -> NvAnchor:
        return NvAnchor(self.connection, self.auths(root))

    def anchor_of(self, whose: Authorizations) -> NvAnchor:
        return NvAnchor(self.connection, whose)

    def approval(self, number: int = 0, **pcrs: bytes) -> Approval:
        values = sealing.read_pcrs(self.connection) | {int(name[3:]): value for name, value in pcrs.items()}
        return approval.verify(approval.approve(number, "test", values, AUTHORITY), AUTHORITY.public)

    def reset(self) -> None:
        """A power cycle of the platform, and a daemon that starts anew."""
        self.connection.close()
        self.bus.power_cycle()
        self.connection = Connection(self.bus)

    def close(self) -> None:
        self.connection.close()
        self.bus.standin.close()


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    made = Platform(tmp_path)
    yield made
    made.close()


def test_an_approved_platform_unseals_after_each_reset_and_only_once(platform: Platform) -> None:
    root = platform.provision()
    good = platform.approval()
    for _ in range(2):
        platform.reset()
        assert platform.slot.open([good]).reveal() == root.reveal()
        with pytest.raises(UnsealError, match="PCR 11 is capped"):
            platform.slot.open([good])


def test_the_capped_pcr_is_the_predicted_one(platform: Platform) -> None:
    platform.provision()
    before = sealing.read_pcrs(platform.connection)[policy.CAPPED_PCR]
    platform.slot.open([platform.approval()])
    assert sealing.read_pcrs(platform.connection)[policy.CAPPED_PCR] == policy.capped(before)


def test_what_differs_from_what_is_approved_is_named(platform: Platform) -> None:
    platform.provision()
    other = platform.approval(pcr9=b"\x01" * 32)
    with pytest.raises(UnsealError, match=r"closest is approval 0 \(test\): PCR 9 is 0000.*approved is 0101"):
        platform.slot.open([other])
    with pytest.raises(UnsealError, match="no approval of this image"):
        platform.slot.open([])


def test_the_tpm_itself_refuses_a_revoked_approval_and_takes_a_newer_one(platform: Platform) -> None:
    root = platform.provision()
    old, new = platform.approval(2), platform.approval(3)
    nv.revoke(platform.connection, platform.auths(root), 0b111)
    with pytest.raises(UnsealError, match=r"approval 2 .* is revoked"):
        platform.slot.open([old])
    with pytest.raises(HardwareTpmError) as refused:
        sealing.unseal(platform.connection, platform.slot.read().sealed, AUTHORITY.public, old)
    assert refused.value.rc == 0x126
    assert nv.revoked(platform.connection) == 0b111
    assert platform.slot.open([old, new]).reveal() == root.reveal()


def test_a_ticket_of_another_authority_or_for_another_policy_does_not_unseal(platform: Platform) -> None:
    platform.provision()
    good = platform.approval()
    stranger = SigningKey.create()
    forged = Approval(0, "forged", good.pcrs, stranger.sign(policy.to_be_signed(good.policy)))
    moved = Approval(1, "moved", good.pcrs, good.ticket)
    for bad in (forged, moved):
        with pytest.raises(UnsealError, match="is refused"):
            platform.slot.open([bad])
    assert sealing.read_pcrs(platform.connection)[policy.CAPPED_PCR] == bytes(32)


def test_another_tpm_is_told_apart(platform: Platform, tmp_path: Path) -> None:
    platform.provision()
    (tmp_path / "other").mkdir()
    other = Platform(tmp_path / "other")
    try:
        other.slot_path.write_bytes(platform.slot_path.read_bytes())
        with pytest.raises(UnsealError, match="not the one that the root key is sealed to"):
            other.slot.open([platform.approval()])
        other.slot_path.unlink()
        other.provision()
        other.slot_path.write_bytes(platform.slot_path.read_bytes())
        with pytest.raises(UnsealError, match="not the one that the root key is sealed to"):
            other.slot.open([platform.approval()])
    finally:
        other.close()


def test_a_tpm_that_somebody_owns_is_refused(platform: Platform, tmp_path: Path) -> None:
    platform.provision()
    with pytest.raises(HardwareTpmError, match="belongs to another manager"):
        Keyslot(tmp_path / "second", platform.connection).create(AUTHORITY.public)


def test_nothing_secret_crosses_the_bus_in_clear(platform: Platform) -> None:
    root = platform.provision()
    platform.reset()
    opened = platform.slot.open([platform.approval()])
    anchor, secret = platform.anchor(opened), Key.random()
    anchor.write(b"d" * 32, secret)
    assert anchor.read()[1].reveal() == secret.reveal()
    derived = platform.auths(root)
    secrets = [root, secret, derived.owner, derived.endorsement, derived.lockout, derived.anchor]
    passed = b"\0".join(platform.bus.seen)
    assert len(passed) > 4000 and not [key for key in secrets if key.reveal() in passed]


def test_possession_is_taken_whole_however_often_it_is_cut_off(tmp_path: Path) -> None:
    cut = 0
    while True:
        directory = tmp_path / str(cut)
        directory.mkdir()
        platform = Platform(directory)
        platform.bus.cut_after = cut
        try:
            root, finished = platform.provision(), True
        except HardwareTpmError:
            finished = False
        platform.bus.cut_after = -1
        if not finished:
            platform.reset()
            root = resume(platform)
        anchor = platform.anchor(root)
        anchor.write(b"d" * 32, Key.random())
        assert anchor.read()[0] == b"d" * 32
        assert platform.slot.open([platform.approval()]).reveal() == root.reveal()
        platform.close()
        if finished:
            break
        cut += 1
    assert cut > 25  # every command of a whole provisioning was cut once


def resume(platform: Platform) -> RootKey:
    """What the next start does with a provisioning that was cut off."""
    if not platform.slot.exists():
        return platform.provision()
    root = platform.slot.open([platform.approval()])
    ownership.take(platform.connection, platform.auths(root))
    platform.reset()
    platform.slot.pin()
    return root


def test_an_anchor_that_is_missing_unwritten_or_made_by_somebody_else_is_a_rollback(platform: Platform) -> None:
    root = platform.provision()
    anchor, mine = platform.anchor(root), platform.auths(root)
    with pytest.raises(RollbackError, match="never written"):
        anchor.read()
    anchor.write(b"d" * 32, Key.random())
    undefine(platform, mine)
    with pytest.raises(RollbackError, match="missing"):
        anchor.read()
    nv.define_anchor(platform.connection, replace(mine, anchor=Key(bytes(32))))
    with pytest.raises(RollbackError, match="not the one that this manager made"):
        anchor.read()
    with pytest.raises(RollbackError, match="not the one that this manager made"):
        anchor.write(b"d" * 32, Key.random())


def undefine(platform: Platform, mine: Authorizations) -> None:
    """What somebody with the owner authorization could do."""

    def remove(esapi: Any, session: Any) -> None:
        with auths.owner(esapi, mine) as owner:
            index = esapi.tr_from_tpmpublic(policy.ANCHOR_INDEX)
            esapi.nv_undefine_space(index, auth_handle=owner, session1=session)

    platform.connection.protected("undefine the anchor", remove)


def test_an_answer_without_the_right_hmac_is_not_believed(platform: Platform) -> None:
    root = platform.provision()
    anchor = platform.anchor(root)
    anchor.write(b"d" * 32, Key.random())
    old: list[bytes] = []

    def record(command: bytes) -> bytes | None:
        if tpm.command_code(command) == 0x14E:  # TPM2_NV_Read
            old.append(platform.bus.standin.execute(command))
            return old[-1]
        return None

    platform.bus.answer = record
    anchor.read()
    anchor.write(b"e" * 32, Key.random())
    platform.bus.answer = lambda command: old[0] if tpm.command_code(command) == 0x14E else None
    with pytest.raises(RollbackError, match="not the one that this manager made"):
        anchor.read()


@pytest.mark.parametrize("rc", [0x922, 0x908, 0x90A])
def test_a_tpm_that_asks_for_patience_gets_it(platform: Platform, rc: int) -> None:
    root = platform.provision()
    anchor = platform.anchor(root)
    left = 20

    def busy(command: bytes) -> bytes | None:
        nonlocal left
        left -= 1
        return bytes.fromhex("8001 0000000a") + rc.to_bytes(4) if left > 0 else None

    platform.bus.answer = busy
    anchor.write(b"d" * 32, Key.random())
    assert left <= 0 and anchor.read()[0] == b"d" * 32


def test_a_reset_of_the_tpm_between_two_requests_changes_nothing(platform: Platform) -> None:
    root = platform.provision()
    anchor, secret = platform.anchor(root), Key.random()
    anchor.write(b"d" * 32, secret)
    platform.bus.power_cycle()
    assert anchor.read()[1].reveal() == secret.reveal()


def test_a_tpm_in_lockout_still_unseals_and_anchors(platform: Platform) -> None:
    root = platform.provision()
    lock_out(platform)
    platform.reset()
    opened = platform.slot.open([platform.approval()])
    platform.anchor(opened).write(b"d" * 32, Key.random())
    assert platform.anchor(root).read()[0] == b"d" * 32


def lock_out(platform: Platform) -> None:
    """Wrong passwords for an object with dictionary-attack protection, until the TPM locks."""

    def attack(esapi: Any) -> int:
        from tpm2_pytss import TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TPMS_SENSITIVE_CREATE, TSS2_Exception
        from tpm2_pytss.constants import ESYS_TR, TPMA_OBJECT

        sensitive = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(userAuth=b"right", data=b"data"))
        attributes = TPMA_OBJECT.parse("fixedtpm|fixedparent|userwithauth")
        handle = esapi.create_primary(
            sensitive, TPM2B_PUBLIC.parse("keyedhash", objectAttributes=attributes), ESYS_TR.NULL
        )[0]
        esapi.tr_set_auth(handle, b"wrong")
        for _ in range(40):
            try:
                esapi.unseal(handle)
            except TSS2_Exception as error:
                if error.rc == 0x921:
                    return 0x921
        return 0

    assert platform.connection.request("attack", attack) == 0x921


def test_many_threads_take_turns_and_nothing_is_left_in_the_tpm(platform: Platform) -> None:
    root = platform.provision()
    anchor = platform.anchor(root)
    anchor.write(b"d" * 32, Key.random())
    with ThreadPoolExecutor(8) as pool:
        assert {digest for digest, _ in pool.map(lambda _: anchor.read(), range(40))} == {b"d" * 32}
    with pytest.raises(UnsealError):
        platform.slot.open([platform.approval(pcr4=b"\x01" * 32)])
    for first in (0x80000000, 0x02000000, 0x03000000):  # transient objects, HMAC sessions, policy sessions
        command = tpm.get_capability(tpm.TPM_CAP_HANDLES, first, 16)
        rc, body = tpm.parse_response(platform.bus.standin.execute(command))
        assert (rc, int.from_bytes(body[5:9])) == (0, 0)


def test_a_tpm_that_is_gone_is_an_error_that_says_so(platform: Platform) -> None:
    platform.provision()
    platform.bus.standin.close()
    with pytest.raises(HardwareTpmError, match="swtpm"):
        sealing.read_pcrs(platform.connection)


def test_a_device_that_does_not_exist_is_an_error_that_names_it() -> None:
    missing = Connection("device:/dev/does-not-exist")
    with pytest.raises(HardwareTpmError, match="cannot read the PCRs"):
        sealing.read_pcrs(missing)
    missing.close()


def test_what_a_signing_key_signs_is_good_under_its_certificates_and_its_pool_survives(
    platform: Platform, tmp_path: Path
) -> None:
    root = platform.provision()
    authority = local.open_or_make(tmp_path / "authority")
    vtpms = {name: VtpmRecord(name, name, State.OFF, 1, "blob", b"", {}, {}) for name in "ab"}
    first = Contents(1, b"", b"", vtpms, authority=authority.public.der)
    manifest = Manifest.create(tmp_path, root, platform.anchor(root), first)
    enrolment = Enrolment(platform.connection, platform.auths(root), manifest)
    authority.enrol(enrolment, platform.bus.directory / "vendor-ca.pem", keys=2)
    for _ in range(2):
        signer = Signer(platform.connection, platform.auths(root), manifest)
        for name in "ab":
            signature = signer.sign(name, hashlib.sha256(b"credential").digest())
            sk, own = identity.chain(manifest.contents, name)
            attestation_ca.verify_authority(own, authority.public)
            VerifyKey(attestation_ca.verify_sk(sk, authority.public)).verify(signature, b"credential", "it")
        before = manifest.contents
        with pytest.raises(StateError, match="destroyed meanwhile"):
            signer.sign("c", bytes(32))
        platform.reset()
        platform.slot.open([platform.approval()])
        manifest = Manifest.load(tmp_path, root, platform.anchor(root))
        assert manifest.contents == before


# -- a place for a manager that comes, and a TPM that is given up -----------------------------------------------------


def coming(platform: Platform, mine: Authorizations) -> Authorizations:
    """What a manager that comes here has: its place's authValue beside all others."""
    secret = Key.random()
    return replace(mine, anchor=secret, index=nv.define_place(platform.connection, mine, secret))


def test_a_place_is_written_first_by_one_and_is_his_anchor_from_then_on(platform: Platform) -> None:
    mine = platform.auths(platform.provision())
    platform.anchor_of(mine).write(b"m" * 32, Key.random())
    theirs = coming(platform, mine)
    with pytest.raises(RollbackError, match="never written"):
        platform.anchor_of(theirs).read()
    Place(platform.connection, theirs).write(b"d" * 32, secret := Key.random())
    with pytest.raises(TakenError, match="was here first"):
        Place(platform.connection, theirs).write(b"e" * 32, Key.random())
    digest, found = platform.anchor_of(theirs).read()
    assert (digest, found.reveal()) == (b"d" * 32, secret.reveal())
    platform.anchor_of(theirs).write(b"f" * 32, Key.random())
    assert platform.anchor_of(theirs).read()[0] == b"f" * 32
    assert platform.anchor_of(mine).read()[0] == b"m" * 32


def test_a_place_is_closed_to_who_has_not_its_secret_and_to_who_had_the_one_before(platform: Platform) -> None:
    mine = platform.auths(platform.provision())
    theirs = coming(platform, mine)
    for stranger in (replace(theirs, anchor=Key.random()), replace(theirs, anchor=mine.anchor)):
        with pytest.raises(RollbackError, match="not the one that this manager made"):
            Place(platform.connection, stranger).write(b"d" * 32, Key.random())
    coming(platform, mine)  # for the next move
    with pytest.raises(RollbackError, match="not the one that this manager made"):
        Place(platform.connection, theirs).write(b"d" * 32, Key.random())


def test_the_ak_certifies_whose_digest_stands_in_an_anchor(platform: Platform) -> None:
    mine = platform.auths(platform.provision())
    platform.anchor_of(mine).write(b"m" * 32, Key.random())
    theirs = coming(platform, mine)
    Place(platform.connection, theirs).write(b"d" * 32, Key.random())
    ak = tpm_structures.parse_public(attest.make_ak(platform.connection, mine))
    for which, digest in ((mine, b"m" * 32), (theirs, b"d" * 32)):
        signed = attest.certify_nv(platform.connection, which, b"for this move")
        tpm_structures.verify_signature(ak, signed.attested, signed.signature)
        found = tpm_structures.parse_attest(signed.attested)
        assert found.extra_data == b"for this move"
        assert found.attested == NvCertify(policy.anchor_names(which.index)[which is theirs], 0, digest)


def test_a_tpm_that_was_given_up_is_nobodys_and_giving_it_up_can_be_repeated(platform: Platform) -> None:
    mine = platform.auths(platform.provision())
    platform.anchor_of(mine).write(b"m" * 32, Key.random())
    attest.make_ak(platform.connection, mine)
    coming(platform, mine)
    ownership.leave(platform.connection, mine)
    ownership.leave(platform.connection, mine)
    assert not ownership.is_owned(platform.connection)
    assert not nv.is_written(platform.connection)
    with pytest.raises(RollbackError, match="missing"):
        platform.anchor_of(mine).read()
    other = Keyslot(platform.slot_path.with_name("another"), platform.connection)
    ownership.take(platform.connection, auths.derive(other.create(AUTHORITY.public), other.read().srk))
