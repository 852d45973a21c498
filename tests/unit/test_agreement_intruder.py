"""The key agreement of a move against an intruder who is the network (Dolev-Yao; MIGRATION.md, sections 1 and 6).

Terms are tuples, hashes and signatures are perfect. The intruder sees every message, may drop it, and gives each side
whatever he can build: any signed order (they are public), any share or move key that he has seen, his own, any quote
that a hardware TPM has made. He makes no quote: that an enrolled platform with an approved image quotes for him is what
R4 excludes. Platform C is such a platform, honest, and in no order of this vTPM; it runs sessions of its own.

Bound: two sources and two destinations at once (the large instance: one more of each), each with one session. Shown for
every interleaving: *secrecy*, the source's key is never one that the intruder can compute; *injective agreement*, a
side that ends with a peer has a session of that very platform with the same order and transcript, and no other has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest

Term = Any
ORDERS = {"AB": ("A", "B"), "CB": ("C", "B"), "AC": ("A", "C")}  # name -> source, destination; each signed
THIEF = "thief's"


@dataclass(frozen=True, slots=True)
class Rules:
    """What the sides do; mutants leave something out."""

    transcript: bool = True  # quotes are over it
    shares: bool = True  # the shares stand in it
    keys: bool = True  # the move keys stand in it
    destination: bool = True  # the source compares the destination's name with the order
    own: bool = True  # the destination compares its own name with the order
    source: bool = True  # the destination verifies the source's evidence


@dataclass(frozen=True, slots=True)
class Session:
    """One side. ``got``: what it was given. ``done``: (peer, order, transcript) when it has ended well."""

    role: str
    platform: str
    order: str
    number: int
    got: Term = None
    quote: Term = None
    done: Term = None

    @property
    def share(self) -> str:
        return f"share of {self.number}"

    @property
    def key(self) -> str:
        return f"key of {self.number}"

    @property
    def offer(self) -> Term:
        return ("offer", self.order, self.share, self.key)


@dataclass(frozen=True, slots=True)
class World:
    sessions: tuple[Session, ...]
    quotes: frozenset[Term] = frozenset()


def first(rules: Rules, offer: Term, share: str, key: str) -> Term:
    """Transcript 1."""
    _, order, offered_share, offered_key = offer
    shares = (offered_share, share) if rules.shares else ()
    keys = (offered_key, key) if rules.keys else ()
    return ("transcript 1", order, shares, keys)


def quoted(rules: Rules, platform: str, side: str, content: Term) -> Term:
    return ("quote", platform, side, content if rules.transcript else None)


def steps(rules: Rules, world: World) -> Iterator[World]:
    shares = [THIEF, *(each.share for each in world.sessions)]
    keys = [THIEF, *(each.key for each in world.sessions)]
    for at, session in enumerate(world.sessions):
        if session.done is not None:
            continue
        if session.role == "source":
            ends = source_ends(rules, session, product(shares, keys, world.quotes))
        elif session.got is None:
            ends = destination_begins(rules, session, product(ORDERS, shares, keys))
        else:
            ends = destination_ends(rules, session, world.quotes)
        for changed, said in ends:
            sessions = (*world.sessions[:at], changed, *world.sessions[at + 1 :])
            yield World(sessions, world.quotes | said)


def source_ends(rules: Rules, session: Session, given: Any) -> Iterator[tuple[Session, frozenset[Term]]]:
    """ACCEPT comes; what follows is CONFIRM, and the state under the shared key."""
    destination = ORDERS[session.order][1]
    for share, key, quote in given:
        one = first(rules, session.offer, share, key)
        named = [destination] if rules.destination else ["A", "B", "C"]
        if quote not in [quoted(rules, name, "accept", one) for name in named]:
            continue
        two = ("transcript 2", one, quote)
        own = quoted(rules, session.platform, "confirm", two)
        done = (destination, session.order, ("transcript 3", two, own))
        yield replace(session, got=(share, key), done=done), frozenset({own})


def destination_begins(rules: Rules, session: Session, given: Any) -> Iterator[tuple[Session, frozenset[Term]]]:
    """OFFER comes; the order is signed, and for this platform."""
    for order, share, key in given:
        if ORDERS[order][1] == session.platform or not rules.own:
            offer = ("offer", order, share, key)
            quote = quoted(rules, session.platform, "accept", first(rules, offer, session.share, session.key))
            yield replace(session, got=offer, quote=quote), frozenset({quote})


def destination_ends(rules: Rules, session: Session, quotes: Any) -> Iterator[tuple[Session, frozenset[Term]]]:
    """CONFIRM comes."""
    _, order, _, _ = session.got
    source = ORDERS[order][0]
    two = ("transcript 2", first(rules, session.got, session.share, session.key), session.quote)
    for quote in quotes if rules.source else [*quotes, "anything"]:
        if not rules.source or quote == quoted(rules, source, "confirm", two):
            yield replace(session, done=(source, order, ("transcript 3", two, quote))), frozenset()


def faults(rules: Rules, sessions: tuple[Session, ...]) -> set[str]:
    found: set[str] = set()
    seen, todo = set(), [World(sessions)]
    while todo:
        world = todo.pop()
        if world in seen:
            continue
        seen.add(world)
        found |= set(wrong(world))
        todo += steps(rules, world)
    assert len(seen) > 30
    return found


def wrong(world: World) -> Iterator[str]:
    for session in world.sessions:
        if session.done is None:
            continue
        peer, order, transcript = session.done
        others = [each for each in world.sessions if each.role != session.role and each.platform == peer]
        if session.role == "source":
            if session.got[0] == THIEF:
                yield "the intruder has the key"
            same = [each for each in others if each.got and (each.share, each.key) == session.got]
            if not [each for each in same if each.got == session.offer]:
                yield "the source agrees with nobody"
        else:
            same = [each for each in others if each.done and each.done[1:] == (order, transcript)]
            if len(same) != 1 or same[0].offer != session.got or same[0].got != (session.share, session.key):
                yield "the destination agrees with nobody"
            if [each for each in world.sessions if each is not session and each.done and each.role == session.role
                    and each.done == session.done]:  # fmt: skip
                yield "two destinations agree with one source"


def several(*what: tuple[str, str, str]) -> tuple[Session, ...]:
    return tuple(Session(role, platform, order, number) for number, (role, platform, order) in enumerate(what))


SMALL = several(("source", "A", "AB"), ("destination", "B", ""), ("destination", "C", ""))
TWO = several(("source", "A", "AB"), ("source", "C", "CB"), ("destination", "B", ""))


@pytest.mark.parametrize("sessions", [SMALL, TWO])
def test_the_intruder_learns_no_key_and_nobody_agrees_with_anybody_else(sessions: tuple[Session, ...]) -> None:
    assert faults(Rules(), sessions) == set()


@pytest.mark.full
@pytest.mark.parametrize("more", [("source", "C", "CB"), ("destination", "B", "")])
def test_nor_with_more_sessions_at_once(more: tuple[str, str, str]) -> None:
    sessions = several(("source", "A", "AB"), more, ("destination", "B", ""), ("destination", "C", ""))
    assert faults(Rules(), sessions) == set()


@pytest.mark.parametrize(
    ("mutant", "fault"),
    [
        (Rules(transcript=False), "the intruder has the key"),
        (Rules(shares=False), "the intruder has the key"),
        (Rules(keys=False), "agrees with nobody"),
        (Rules(destination=False, own=False), "the source agrees with nobody"),  # bait-and-switch; either one stops it
        (Rules(source=False), "the destination agrees with nobody"),
    ],
)
def test_each_rule_that_is_left_out_is_an_attack(mutant: Rules, fault: str) -> None:
    assert any(fault in each for each in faults(mutant, SMALL))
