"""trust.peer, server.move_rules, wire.features, wire.fields, store.final_state: what a move accepts, rule by rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager_vm.crypto import Key
from manager_vm.errors import EvidenceError, IntegrityError, MigrationError, RemoteProtocolError, StateError
from manager_vm.keys import evidence
from manager_vm.protocol.channel_server import SessionState
from manager_vm.protocol.lifecycle import State
from manager_vm.server import move_rules
from manager_vm.store import final_state, moves
from manager_vm.store.blobs import ParkedState
from manager_vm.store.final_state import FinalState
from manager_vm.store.marks import Recovered
from manager_vm.store.records import Contents, Move, VtpmKeys, VtpmRecord
from manager_vm.trust import bundle, peer, platform
from manager_vm.trust.peer import Rules
from manager_vm.trust.signing import SigningKey
from manager_vm.vtpm import changes
from manager_vm.wire import features, framing, migration
from manager_vm.wire.migration import MAX_BODY, Offer, Refuse
from tests.software_platform import SoftwarePlatform

HOST = SoftwarePlatform()
BINDING, OTHER = b"\1" * 32, b"\2" * 32
SHOWN = bundle.pack_host(evidence.host_evidence(HOST, BINDING))
NAME = platform.verify(HOST.statement(), HOST.authority.public).name


def rules(**changed: Any) -> Rules:
    values: dict[str, Any] = {
        "authority": HOST.authority.public,
        "revoked_image": lambda number: False,
        "revoked_platform": lambda ak: False,
    }
    return Rules(**{**values, **changed})


def test_a_peer_is_who_its_hardware_tpm_shows_in_this_very_move() -> None:
    found = peer.verify(SHOWN, BINDING, NAME, rules())
    assert (found.platform.name, found.image) == (NAME, 3)


@pytest.mark.parametrize(
    ("binding", "name", "changed", "said"),
    [
        (OTHER, NAME, {}, "does not carry the nonce"),
        (BINDING, "rack9", {}, "not 'rack9', which the order names"),
        (BINDING, NAME, {"authority": SigningKey.create().public}, "not signed by anybody"),
        (BINDING, NAME, {"revoked_image": lambda number: number == 3}, r"image .* is revoked here"),
        (BINDING, NAME, {"revoked_platform": lambda ak: True}, "is revoked here"),
    ],
)
def test_each_other_one_is_refused_by_its_own_rule(
    binding: bytes, name: str, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(EvidenceError, match=said):
        peer.verify(SHOWN, binding, name, rules(**changed))


def test_an_image_that_nobody_approved_or_whose_manager_does_not_serve_is_no_peer() -> None:
    bare = replace(HOST, approves=False)
    for host in (bare, replace(HOST, values={**HOST.image, 4: bytes(32)}), replace(HOST, values=HOST.image)):
        host.ak = HOST.ak
        with pytest.raises(EvidenceError):
            peer.verify(bundle.pack_host(evidence.host_evidence(host, BINDING)), BINDING, NAME, rules())


@pytest.mark.parametrize("at", range(0, len(SHOWN), 41))
def test_evidence_with_one_other_byte_is_refused(at: int) -> None:
    changed = SHOWN[:at] + bytes([SHOWN[at] ^ 1]) + SHOWN[at + 1 :]
    with pytest.raises(EvidenceError):
        peer.verify(changed, BINDING, NAME, rules())


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ({"state": "2"}, {}),
        ({"profile": "custom"}, {}),
        ({"swtpm": "0.10.1"}, {}),
        ({"libtpms": "0.9.3"}, {}),
        ({}, {"swtpm": ""}),
    ],
)
def test_a_vtpm_goes_only_where_it_can_be_understood(source: dict[str, str], destination: dict[str, str]) -> None:
    same = {"state": "1", "profile": "null", "swtpm": "0.10.0", "libtpms": "0.9.2-3.1"}
    move_rules.demand_fits(same, same)
    move_rules.demand_fits(same, {**same, "swtpm": "0.10.2"})
    with pytest.raises(MigrationError) as refused:
        move_rules.demand_fits({**same, **source}, {**same, **destination})
    assert refused.value.cause == "version"


@pytest.mark.parametrize(("source", "destination", "allowed"), [(0, 0, True), (1, 2, True), (2, 1, False)])
def test_no_vtpm_goes_down_in_trust(source: int, destination: int, allowed: bool) -> None:
    if allowed:
        return move_rules.demand_no_descent(source, destination)
    with pytest.raises(MigrationError, match="no vTPM goes down") as refused:
        move_rules.demand_no_descent(source, destination)
    assert refused.value.cause == "policy"


# -- bytes --------------------------------------------------------------------------------------------------------

OFFER = Offer(1, 2, b"m" * 16, b"order", b"s" * 65, b"n" * 32, b"k" * 65, "a=b", "h:1")


def test_a_message_has_one_form_and_no_part_of_it_is_a_message() -> None:
    body = migration.body(OFFER)
    assert migration.from_frame(migration.to_frame(OFFER)) == OFFER
    for size in range(len(body)):
        with pytest.raises(RemoteProtocolError):
            migration.from_frame(framing.Frame(0x60, body=body[:size]))
    with pytest.raises(RemoteProtocolError, match="behind the last field"):
        migration.from_frame(framing.Frame(0x60, body=body + b"x"))


@pytest.mark.parametrize(
    "frame",
    [
        framing.Frame(0x5F),
        framing.Frame(0x60, seq=1, body=migration.body(OFFER)),
        framing.Frame(0x60, arg=1, body=migration.body(OFFER)),
        framing.Frame(0x60, name="v", body=migration.body(OFFER)),
        framing.Frame(0x64, body=b"m" * 16 + b"\0" + b"\0\0"),
        framing.Frame(0x64, body=b"m" * 16 + b"\1" + b"\0\1\xff"),
        framing.Frame(0x65, body=bytes(170)),
    ],
)
def test_a_frame_that_a_move_does_not_have_is_refused(frame: framing.Frame) -> None:
    with pytest.raises(RemoteProtocolError):
        migration.from_frame(frame)


@given(st.text(max_size=100), st.sampled_from(list(migration.Cause)))
def test_a_refusal_survives_its_bytes(text: str, cause: migration.Cause) -> None:
    message = Refuse(b"m" * 16, cause, text)
    assert migration.from_frame(migration.to_frame(message)) == message


@pytest.mark.parametrize("kind", [*MAX_BODY, 0x01])
def test_a_length_above_that_of_its_type_is_refused_before_anything_is_kept_for_it(kind: int) -> None:
    limit = MAX_BODY.get(kind, 0)
    decoder = framing.Decoder(max(MAX_BODY.values()), by_type=MAX_BODY)
    head = framing.encode(framing.Frame(kind, body=bytes(limit + 1)))[: framing.HEADER_SIZE]
    with pytest.raises(RemoteProtocolError, match=f"at most {limit} are allowed"):
        decoder.feed(head)


@pytest.mark.parametrize("text", ["", "a", "b=1\na=2", "a=1\na=2", "A=1", "a=\x01", "a=1\n"])
def test_features_have_one_form(text: str) -> None:
    with pytest.raises(RemoteProtocolError):
        features.parse(text)


WORDS, VALUES = (st.from_regex(each, fullmatch=True) for each in (r"[a-z]{1,20}", r"[ -~]{0,50}"))


@given(st.dictionaries(WORDS, VALUES, min_size=1))
def test_features_survive_their_lines(found: dict[str, str]) -> None:
    assert features.parse(features.pack(found)) == found


def test_versions_are_compared_as_numbers() -> None:
    assert features.version("0.10.1-1+deb13u1") == (0, 10, 1) > features.version("0.9.2") > features.version("unknown")


# -- the state, and what a record becomes -------------------------------------------------------------------------

STATE = ParkedState(b"permanent", b"volatile", b"", SessionState(b"s" * 16, 7, 0, b"command", None))
MARKS = (Recovered(b"o", b"i", 5),)
FINAL = FinalState("u", "web", State.RUNNING, 3, "default", {"ecc-p256": b"n"}, {}, b"ca", "", MARKS, STATE, "vm")


def test_the_state_survives_its_bytes() -> None:
    assert final_state.unpack(final_state.pack(FINAL)) == FINAL


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    said = msgpack.unpackb(final_state.pack(FINAL))
    change(said)
    return bytes(msgpack.packb(said))


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said.update(version=1),
        lambda said: said.update(permanent=b""),
        lambda said: said.update(volatile="text"),
        lambda said: said.update(session=[1]),
        lambda said: said["record"].update(status="failed"),
        lambda said: said["record"].update(status="nonsense"),
        lambda said: said["record"].update(boot=-1),
        lambda said: said["record"].update(name=5),
        lambda said: said["record"].update(recovered=[[1, 2]]),
        lambda said: said["record"].pop("uuid"),
        lambda said: said["record"].pop("vm"),
    ],
)
def test_a_state_of_another_form_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(IntegrityError, match="another format"):
        final_state.unpack(changed(change))
    with pytest.raises(IntegrityError):
        final_state.unpack(b"\xc1")


def arriving(before: State, generation: int = 2) -> VtpmRecord:
    run = "run" if before is State.RUNNING else ""
    return VtpmRecord(
        "u", "web", State.ARRIVING, 1, "b", b"", {}, {}, run=run, before=str(before), generation=generation
    )


@pytest.mark.parametrize(
    ("before", "serves", "waited", "state", "resume"),
    [
        (State.RUNNING, True, True, State.RUNNING, False),
        (State.RUNNING, False, True, State.PARKED, True),
        (State.RUNNING, False, False, State.FAILED, False),
        (State.PARKED, False, False, State.PARKED, False),
        (State.OFF, False, False, State.OFF, False),
    ],
)
def test_what_was_running_goes_on_only_where_nobody_can_have_served_it(
    before: State, serves: bool, waited: bool, state: State, resume: bool
) -> None:
    new = changes.arrived(arriving(before), serves=serves, waited=waited)
    assert (new.state, new.resume, new.before) == (state, resume, "")
    assert bool(new.run) is (state in (State.RUNNING, State.FAILED))  # of a dead one its last run counts


def test_a_vtpm_is_welcome_once_and_never_as_old_as_it_was_here() -> None:
    keys = VtpmKeys(Key.random())
    here = changes.welcomed(Contents(1, b"", b""), arriving(State.OFF), keys)
    with pytest.raises(StateError, match="here already"):
        changes.welcomed(here, arriving(State.OFF, 5), keys)
    gone = changes.settled(here, arriving(State.OFF)).without_vtpm("u")
    with pytest.raises(StateError, match="come further since"):
        changes.welcomed(gone, arriving(State.OFF, 2), keys)
    assert changes.welcomed(gone, arriving(State.OFF, 3), keys).vtpms["u"].generation == 3
    turned_away = here.without_vtpm("u")  # it never was more than prepared: the same may come again
    assert changes.welcomed(turned_away, arriving(State.OFF, 2), keys)


# -- what is remembered -------------------------------------------------------------------------------------------


def move(number: int, vtpm: str, *, ended: bool = True, peer: bytes = b"p", out: bool = True) -> Move:
    empty = {
        "name": "v",
        "group": "default",
        "generation": 2,
        "peer": "b",
        "address": "",
        "transcript": b"",
        "order": b"",
    }
    return Move(f"{number}", out, "done", vtpm, peer_key=b"", peer_ak=peer, started="", ended="then" * ended, **empty)  # type: ignore[arg-type]


def test_of_the_moves_that_are_over_the_newest_are_kept_and_all_that_a_peer_can_still_ask_about() -> None:
    first = [move(0, "a"), move(1, "a"), move(2, "a", peer=b"q"), move(3, "a", out=False), move(4, "b", ended=False)]
    later = [move(number, "c") for number in range(10, 10 + moves.KEPT)]
    contents = Contents(1, b"", b"")
    for each in [*first, *later]:
        contents = moves.put(contents, each, b"key" if not each.ended else None)
    assert list(contents.moves) == ["1", "2", "3", "4", *(each.id for each in later)]
    assert list(contents.move_keys) == ["4"]
