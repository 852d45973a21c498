"""trust.relocation: orders to move a manager, and the words that hardware TPMs certify of it (RELOCATION.md)."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from manager_vm.crypto import Key
from manager_vm.errors import ConfigError, EvidenceError, IntegrityError
from manager_vm.protocol.relocation import Leaving, Word
from manager_vm.store import packing
from manager_vm.store.records import Contents
from manager_vm.store.relocation import Departure, Expected, Place, pack_place, unpack_place
from manager_vm.trust import envelope, policy, relocation, tpm_structures
from manager_vm.trust.relocation import RELEASED, Said
from manager_vm.trust.signing import SigningKey
from manager_vm.trust.tpm_constants import Type
from manager_vm.wire import migration
from manager_vm.wire import relocation as wire
from tests.unit import software_tpm, statements

AUTHORITY = SigningKey.create()
MANAGER, MOVE, OTHER = "ab" * 32, bytes(range(16)), bytes(16)
KEY = ec.generate_private_key(ec.SECP256R1())
PUBLIC = tpm_structures.parse_public(software_tpm.signing(KEY, software_tpm.AK))
PLACE = policy.place_name(policy.OTHER_ANCHOR_INDEX)
ORDER = relocation.give(MANAGER, 3, "rack1", "rack2", AUTHORITY)


def said(
    contents: bytes = b"d" * 32,
    word: Word = Word.CLAIMED,
    move: bytes = MOVE,
    name: bytes = PLACE,
    offset: int = 0,
    kind: Type = Type.NV,
) -> Said:
    """As a hardware TPM would say it."""
    attested = struct.pack(">H", len(name)) + name + struct.pack(">HH", offset, len(contents)) + contents
    message = software_tpm.attest(kind, relocation.qualifying(word, move), attested)
    return Said(message, software_tpm.sign(KEY, message))


def verified(word: Said, wanted: Word = Word.CLAIMED) -> bytes:
    return relocation.verify_word(word, wanted, MOVE, PUBLIC, [PLACE])


def test_an_order_says_which_manager_goes_where_after_how_many_moves() -> None:
    found = relocation.verify(ORDER, AUTHORITY.public)
    assert (found.manager, found.relocations, found.source, found.destination) == (MANAGER, 3, "rack1", "rack2")
    assert relocation.is_order(ORDER) and not relocation.is_order(b"{}")
    assert found.digest == envelope.digest(relocation.ORDER, ORDER)


def test_an_order_that_nobody_could_follow_is_not_made() -> None:
    for wrong in (("x", 0, "a", "b"), (MANAGER, -1, "a", "b"), (MANAGER, 0, "a", "a"), (MANAGER, 0, "a b", "c")):
        with pytest.raises(ConfigError):
            relocation.give(*wrong, AUTHORITY)


def test_an_order_that_the_authority_did_not_sign_is_refused() -> None:
    for _, forged in statements.forgeries(ORDER):
        with pytest.raises(EvidenceError):
            relocation.verify(forged, AUTHORITY.public)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("manager", "ab"),
        ("relocations", -1),
        ("relocations", True),
        ("relocations", "3"),
        ("source", "rack2"),
        ("destination", "a b"),
        ("id", "00"),
        ("issued", 5),
    ],
)
def test_an_order_with_a_damaged_field_is_refused(field: str, value: object) -> None:
    body = {**statements.body_of(relocation.ORDER, ORDER), field: value}
    with pytest.raises(EvidenceError, match="another version"):
        relocation.verify(envelope.sign(relocation.ORDER, body, AUTHORITY), AUTHORITY.public)


def test_a_word_gives_what_stands_in_the_place() -> None:
    assert verified(said()) == b"d" * 32
    assert verified(said(RELEASED, Word.RELEASED), Word.RELEASED) == RELEASED


@pytest.mark.parametrize(
    "word",
    [
        said(word=Word.COMMIT),
        said(move=OTHER),
        said(name=policy.place_name(policy.ANCHOR_INDEX)),
        said(name=policy.anchor_names(policy.OTHER_ANCHOR_INDEX)[0]),
        said(offset=32),
        said(b"d" * 31),
        said(RELEASED),
        replace(said(), signature=said().signature[:-1] + b"\0"),
        Said(said(b"e" * 32).attested, said().signature),
    ],
    ids=["word", "move", "index", "an anchor", "the secret", "a part", "released", "signature", "contents"],
)
def test_a_word_that_says_something_else_is_refused(word: Said) -> None:
    with pytest.raises(EvidenceError):
        verified(word)


def test_released_is_said_of_a_place_that_was_given_up_alone() -> None:
    with pytest.raises(EvidenceError):
        verified(said(word=Word.RELEASED), Word.RELEASED)


def test_every_flipped_byte_of_a_word_is_noticed() -> None:
    good = said()
    for changed in statements.flipped(good.attested):
        with pytest.raises(EvidenceError):
            verified(replace(good, attested=changed))


# -- what is durable and what travels ---------------------------------------------------------------------------------

A_PLACE = Place(b"srk", 7, 8, Key(b"p" * 32), Key(b"s" * 32), b"{}", b"ak", b"st", b"au", ((b"a", b"b", b"c"),), b"log")


def test_a_place_arrives_as_it_was_sent() -> None:
    found = unpack_place(pack_place(A_PLACE))
    assert replace(found, platform=A_PLACE.platform, secret=A_PLACE.secret) == A_PLACE
    assert (found.platform.reveal(), found.secret.reveal()) == (b"p" * 32, b"s" * 32)
    with pytest.raises(IntegrityError):
        unpack_place(pack_place(A_PLACE)[:-1])


def test_a_manifest_keeps_a_move_and_says_no_secret_of_it_in_the_open() -> None:
    leaving = Departure("00" * 16, Leaving.LEFT, "b", b"ak", "h:1", b"d", b"home", "now", b"order", b"PLACE-SECRET")
    expected = Expected("11" * 16, MANAGER, "a", b"ak", 7, "now", b"EXPECTED-SECRET")
    contents = Contents(
        1,
        b"ca",
        b"key",
        relocations=2,
        came="22" * 16,
        departure=leaving,
        expected=expected,
        released={"33": (b"a", b"s")},
    )
    opened, secret = packing.pack_open(contents), packing.pack_secret(contents)
    assert packing.unpack(opened, secret) == contents
    assert b"SECRET" not in opened
    assert "SECRET" not in repr(contents)


@pytest.mark.parametrize(
    "message",
    [wire.Adopt(b"r" * 32, 5), wire.Commit(b"a", b"s", b"e" * 32), wire.Release(), wire.Told(1, b"a", b"s")],
)
def test_messages_go_through_a_record_and_show_no_secret(message: wire.Message) -> None:
    assert migration.parse_inner(migration.pack_inner(message)) == message
    assert "rrrr" not in repr(message) and "eeee" not in repr(message)
