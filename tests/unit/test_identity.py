"""keys/identity and store/records: which signing key is whose, and that the disk says so to nobody else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from manager_vm.errors import EvidenceError, StateError
from manager_vm.keys import identity
from manager_vm.protocol.lifecycle import State
from manager_vm.store import events, packing
from manager_vm.store.records import Contents, Identity, SigningKey, VtpmRecord
from manager_vm.trust import platform, tpm_structures
from tests.unit.statements import AUTHORITY, STRANGER
from tests.unit.test_trust_platform import AK_AREA

STATEMENT = platform.enrol("rack7", tpm_structures.parse_public(AK_AREA), bytes(32), 1, AUTHORITY)
KEYS = tuple(SigningKey(b"public%d" % i, b"private%d" % i, b"certificate%d" % i) for i in range(2))
NEW = SigningKey(b"public-new", b"private-new")


def vtpm(uuid: str) -> VtpmRecord:
    return VtpmRecord(uuid, uuid, State.OFF, 200_000, "blob", b"", {}, {})


def enrolled(*names: str) -> Contents:
    contents = Contents(1, b"certificate", b"", authority=AUTHORITY.public.der)
    for name in names:
        contents = contents.with_vtpm(vtpm(name))
    return replace(contents, identity=Identity(AK_AREA, STATEMENT, b"ca", (*KEYS, NEW)))


def test_each_vtpm_gets_one_key_and_none_gets_one_that_is_not_certified() -> None:
    contents = enrolled("a", "b", "c")
    assert (identity.free(contents), identity.pending(contents)) == (2, [NEW])
    with_a = identity.assign(contents, "a")
    assert identity.assign(with_a, "a") is with_a
    with_b = identity.assign(with_a, "b")
    owners = [key.vtpm for key in identity.keys(with_b)]
    assert owners == ["a", "b", ""] and identity.free(with_b) == 0
    with pytest.raises(StateError, match=r"no signing key is left.*platform evidence --more N"):
        identity.assign(with_b, "c")
    assert identity.chain(with_b, "b") == [b"certificate1", b"ca"]
    with pytest.raises(StateError, match="no signing key yet"):
        identity.chain(with_b, "c")


def test_a_released_key_is_gone_and_no_other_vtpm_gets_it() -> None:
    contents = identity.assign(enrolled("a", "b"), "a")
    released = identity.release(contents.without_vtpm("a"), "a")
    assert identity.keys(released) == (KEYS[1], NEW)
    assert identity.release(released, "a") is released
    assert identity.assigned(identity.assign(released, "b"), "b") == replace(KEYS[1], vtpm="b")


def test_nobody_gets_a_key_before_the_enrolment_or_after_its_end() -> None:
    bare = replace(enrolled("a"), identity=None)
    for contents in (bare, replace(bare, identity=Identity(AK_AREA, keys=KEYS))):
        assert not identity.is_enrolled(contents)
        with pytest.raises(EvidenceError, match="is not enrolled"):
            identity.assign(contents, "a")
    with pytest.raises(StateError, match="destroyed meanwhile"):
        identity.assign(enrolled(), "a")
    assert identity.verified(enrolled()).name == "rack7"
    with pytest.raises(EvidenceError):
        identity.verified(replace(enrolled(), authority=STRANGER.public.der))


def test_an_identity_survives_the_manifest_and_its_keys_are_not_in_the_open_part_or_in_repr() -> None:
    contents = identity.assign(enrolled("a"), "a")
    opened, secret = packing.pack_open(contents), packing.pack_secret(contents)
    assert packing.unpack(opened, secret) == contents
    for part in (b"public0", b"private0", b"certificate0"):
        assert part not in opened and part in secret
    assert AK_AREA in opened and "private0" not in repr(contents)
    bare = replace(contents, identity=None)
    assert packing.unpack(packing.pack_open(bare), packing.pack_secret(bare)) == bare


def test_an_enrolment_is_an_event_and_an_assignment_is_none() -> None:
    before = replace(enrolled("a"), identity=None)
    (event, fields), *others = events.between(before, enrolled("a"))
    assert (event, fields["keys"], others) == ("platform enrolled", 2, [])
    assert events.between(enrolled("a"), identity.assign(enrolled("a"), "a")) == []
