"""What is durable of a move (MIGRATION.md, section 8): which side, how far, and what the peer has signed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from manager_vm.store.records import Contents, Move

KEPT = 256  # moves that are over, beside those that a peer may still ask about


def put(contents: Contents, move: Move, key: bytes | None = None) -> Contents:
    """With ``move`` added or replaced. ``key``: our private move key (PKCS #8, DER); a move that is over has none."""
    keys = dict(contents.move_keys)
    if key is not None:
        keys[move.id] = key
    if move.ended:
        keys.pop(move.id, None)
    moves = {**contents.moves, move.id: move}
    for old in forgotten(moves):
        del moves[old]
    return replace(contents, moves=moves, move_keys=keys)


def forgotten(moves: Mapping[str, Move]) -> set[str]:
    """Which are not kept: over, not among the newest, and not the newest of their vTPM with their peer, in their
    direction. That one's outcome the peer may not have heard, and about no older one does it ask.
    """
    last = {(each.vtpm, each.peer_ak, each.out): each.id for each in moves.values()}
    return {each.id for each in moves.values() if each.ended} - _newest(moves) - set(last.values())


def _newest(moves: Mapping[str, Move]) -> set[str]:
    return {each.id for each in [each for each in moves.values() if each.ended][-KEPT:]}


def open_one(contents: Contents, vtpm: str) -> Move | None:
    """The move of this vTPM that is not over."""
    return next((move for move in contents.moves.values() if move.vtpm == vtpm and not move.ended), None)


def newest(contents: Contents, vtpm: str) -> int:
    """The highest generation that this manager ever recorded for a vTPM, 0 if it never had it."""
    record = contents.vtpms.get(vtpm)
    return max(contents.generations.get(vtpm, 0), record.generation if record is not None else 0)


def remember(contents: Contents, vtpm: str, generation: int) -> Contents:
    """That this vTPM has come so far, wherever it is: nothing older of it is ever taken again."""
    return replace(contents, generations={**contents.generations, vtpm: max(newest(contents, vtpm), generation)})
