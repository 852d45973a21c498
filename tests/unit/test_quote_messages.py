"""protocol/quote_server, quote_client and the pair: a question for evidence through losses, repeats, new sessions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manager_vm.errors import LocalProtocolError, RemoteProtocolError
from manager_vm.protocol.channel_server import Attest, ChannelServer, Send
from manager_vm.protocol.quote_client import AGAIN, GIVE_UP
from manager_vm.wire import channel
from manager_vm.wire.channel import Bye, Error, Hello, Type, Welcome
from manager_vm.wire.framing import Frame
from manager_vm.wire.quote import MAX_PART, QuoteBegin, QuoteFetch, QuotePart, QuoteRefused, Refusal
from tests.pairs import OTHER_SESSION, SESSION, Pair, command, response

EVIDENCE = bytes(range(256)) * 40  # three parts
QUESTION = QuoteBegin(1, 0x81010000, b"n" * 32, b"quote", b"signature")
OTHER = QuoteBegin(2, 0x81010000, b"m" * 32, b"quote", b"signature")
REFUSED = QuoteRefused(1, Refusal.NONCE, "no")


def greeted() -> ChannelServer:
    """A manager's automaton that has answered HELLO."""
    server = ChannelServer()
    server.receive(Hello(SESSION))
    return server


def asking(server: ChannelServer | None = None) -> ChannelServer:
    """One that works on QUESTION."""
    server = server or greeted()
    assert server.receive(QUESTION) == [Attest(QUESTION)]
    return server


# -- the bytes ------------------------------------------------------------------------------------------------


def test_the_bodies_have_the_bytes_of_the_specification() -> None:
    assert channel.to_frame(QuoteBegin(7, 0x81010002, b"nn", b"q", b"sss")) == Frame(
        16, 0, 7, bytes.fromhex("02000181 0200 0100 0300") + b"nnqsss"
    )
    assert channel.to_frame(QuoteFetch(7, 4088)) == Frame(16, 1, 7, bytes.fromhex("f80f0000"))
    assert channel.to_frame(QuotePart(7, 300, 299, b"x")) == Frame(17, 0, 7, bytes.fromhex("2c010000 2b010000") + b"x")
    assert channel.to_frame(QuoteRefused(7, Refusal.LATER, "in 5 s")) == Frame(17, 9, 7, b"in 5 s")


@pytest.mark.parametrize(
    ("kind", "arg", "body"),
    [
        (Type.QUOTE_REQUEST, 0, "01000081 0000 0000 00"),
        (Type.QUOTE_REQUEST, 0, "01000081 0100 0000 0000"),
        (Type.QUOTE_REQUEST, 0, "01000081 0000 0000 0000 00"),
        (Type.QUOTE_REQUEST, 1, "000000"),
        (Type.QUOTE_REQUEST, 1, "0000000000"),
        (Type.QUOTE_REQUEST, 2, "00000000"),
        (Type.QUOTE_REPLY, 0, "01000000 00000000"),
        (Type.QUOTE_REPLY, 0, "01000400 00000000 00"),
        (Type.QUOTE_REPLY, 0, "01000000 01000000 00"),
        (Type.QUOTE_REPLY, 0, "ffff0000 00000000" + "00" * (MAX_PART + 1)),
        (Type.QUOTE_REPLY, 12, ""),
    ],
)
def test_a_body_that_its_fields_do_not_fill_is_refused(kind: Type, arg: int, body: str) -> None:
    with pytest.raises(RemoteProtocolError):
        channel.from_frame(Frame(kind, arg, 1, bytes.fromhex(body)))


# -- the manager ----------------------------------------------------------------------------------------------


def test_evidence_is_sent_in_parts_each_when_it_is_fetched() -> None:
    server = asking()
    assert server.attested(QUESTION, EVIDENCE) == [Send(QuotePart(1, len(EVIDENCE), 0, EVIDENCE[:MAX_PART]))]
    rest = server.receive(QuoteFetch(1, 2 * MAX_PART))
    assert rest == [Send(QuotePart(1, len(EVIDENCE), 2 * MAX_PART, EVIDENCE[2 * MAX_PART :]))]


def test_the_same_question_again_is_not_worked_on_twice() -> None:
    server = asking()
    assert server.receive(QUESTION) == []
    first = server.attested(QUESTION, EVIDENCE)
    assert server.receive(QUESTION) == first
    refusing = asking()
    assert refusing.attested(QUESTION, REFUSED) == [Send(REFUSED)] == refusing.receive(QUESTION)


def test_the_same_token_with_another_question_closes_the_session() -> None:
    changed = QuoteBegin(1, QUESTION.handle, b"x" * 32, b"quote", b"signature")
    working, done = asking(), asking()
    done.attested(QUESTION, EVIDENCE)
    for server in (working, done):
        (error, _) = server.receive(changed)
        assert isinstance(error, Send) and isinstance(error.message, Error)


def test_another_question_waits_for_the_one_before() -> None:
    server = asking()
    (refused,) = server.receive(OTHER)
    assert isinstance(refused, Send) and isinstance(refused.message, QuoteRefused)
    assert refused.message.reason is Refusal.BUSY
    server.attested(QUESTION, EVIDENCE)
    assert server.receive(OTHER) == [Attest(OTHER)]
    assert _refusal(server, QuoteFetch(1, 0)) is Refusal.UNKNOWN


@pytest.mark.parametrize("end", [Hello(OTHER_SESSION), Bye()])
def test_an_answer_to_a_session_that_is_over_is_dropped_and_no_question_begins_before(end: channel.Message) -> None:
    server = asking()
    server.receive(end)
    server.receive(Hello(OTHER_SESSION))
    assert _refusal(server, QUESTION) is Refusal.BUSY
    assert server.attested(QUESTION, EVIDENCE) == []
    assert _refusal(server, QuoteFetch(1, 0)) is Refusal.UNKNOWN
    assert server.receive(QUESTION) == [Attest(QUESTION)]


def test_a_session_that_is_resumed_finds_its_evidence() -> None:
    server = asking()
    server.new_peer()
    assert server.attested(QUESTION, EVIDENCE) == []
    server.receive(Hello(SESSION))
    (part,) = server.receive(QUESTION)
    assert isinstance(part, Send) and isinstance(part.message, QuotePart)


@pytest.mark.parametrize("offset", [len(EVIDENCE), 2**32 - 1])
def test_nothing_is_fetched_behind_the_end(offset: int) -> None:
    server = asking()
    server.attested(QUESTION, EVIDENCE)
    assert _refusal(server, QuoteFetch(1, offset)) is Refusal.UNKNOWN


def test_a_question_before_hello_closes_the_session() -> None:
    for message in (QUESTION, QuoteFetch(1, 0)):
        (error, _) = ChannelServer().receive(message)
        assert isinstance(error, Send) and isinstance(error.message, Error)


def test_only_a_front_end_asks() -> None:
    for message in (QuotePart(1, 2, 0, b"x"), REFUSED):
        (error, _) = greeted().receive(message)
        assert isinstance(error, Send) and isinstance(error.message, Error)


def test_an_answer_that_nobody_asked_for_is_our_own_error() -> None:
    with pytest.raises(LocalProtocolError):
        greeted().attested(QUESTION, EVIDENCE)


def _refusal(server: ChannelServer, message: channel.Message) -> Refusal:
    (refused,) = server.receive(message)
    assert isinstance(refused, Send) and isinstance(refused.message, QuoteRefused)
    return refused.message.reason


# -- the pair -------------------------------------------------------------------------------------------------


def ready() -> Pair:
    """A pair after its greeting, whose manager makes EVIDENCE of every question."""
    pair = Pair()
    pair.evidence = EVIDENCE
    return pair.connect().run()


def test_evidence_comes_whole_while_commands_go_on() -> None:
    pair = ready()
    pair.ask(QUESTION)
    pair.submit(command(1))
    pair.run()
    assert (pair.outcomes, pair.answers) == ([EVIDENCE], [response(command(1))])
    assert not pair.client.asking


def test_a_refusal_is_the_outcome() -> None:
    pair = ready()
    pair.evidence = QuoteRefused(1, Refusal.NOT_AN_AK, "it is not restricted")
    pair.ask(QUESTION)
    assert pair.run().outcomes == [pair.evidence]


def test_a_question_that_is_asked_before_the_connection_is_there_goes_with_it() -> None:
    pair = Pair()
    pair.evidence = EVIDENCE
    pair.ask(QUESTION)
    assert pair.connect().run().outcomes == [EVIDENCE]


@pytest.mark.parametrize("before", [True, False])
def test_a_manager_that_does_not_know_the_question_is_not_asked(before: bool) -> None:
    pair = Pair()
    if before:
        pair.ask(QUESTION)
    pair.connect()
    pair.to_manager.clear()
    pair.deliver_to_guest(Welcome(SESSION, 1, False, quotes=False))
    if not before:
        pair.ask(QUESTION)
    (outcome,) = pair.outcomes
    assert isinstance(outcome, QuoteRefused) and "too old" in outcome.text
    assert not pair.to_manager and not pair.client.asking


def test_who_gets_no_answer_is_told_so_in_the_end() -> None:
    pair = ready()
    pair.evidence = None
    pair.ask(QUESTION)
    for _ in range(int(GIVE_UP) + 1):
        pair.run()
        pair.pass_time(1.0)
    (outcome,) = pair.outcomes
    assert isinstance(outcome, QuoteRefused) and "in time" in outcome.text
    assert len(pair.questions) == 1


def test_two_questions_at_once_are_our_own_error() -> None:
    pair = ready()
    pair.ask(QUESTION)
    with pytest.raises(LocalProtocolError):
        pair.ask(OTHER)


EVENTS = ("run", "second", "lose to manager", "lose to guest", "repeat to manager", "repeat to guest", "swap to guest",
          "restart manager", "reconnect", "later", "now", "done", "submit")  # fmt: skip


@settings(max_examples=500)
@given(st.lists(st.sampled_from(EVENTS), max_size=40))
def test_whatever_is_lost_repeated_or_swapped_the_evidence_comes_whole_and_once(events: list[str]) -> None:
    pair, submitted = ready(), 0
    pair.ask(QUESTION)
    for event in [*events, "now", "done", *["second"] * (int(AGAIN) * 8), "run"]:
        line = pair.to_manager if event.endswith("to manager") else pair.to_guest
        if event in ("second", "run"):
            pair.run()
            pair.pass_time(1.0 if event == "second" else 0.0)
        elif event.startswith("lose") and line:
            line.popleft()
        elif event.startswith("repeat") and line:
            line.append(line[0])
        elif event.startswith("swap"):
            line.rotate(1)
        elif event in ("later", "now"):
            pair.evidence = None if event == "later" else EVIDENCE
        elif event == "done":
            pair.finish_questions(EVIDENCE)
        elif event == "submit" and pair.client.idle:
            submitted += 1
            pair.submit(command(submitted))
        elif event == "restart manager" and pair.running is None:
            pair.replace_server(ChannelServer(pair.server.state))
            pair.questions.clear()
            pair.to_manager.clear()
            pair.to_guest.clear()
        if event == "reconnect" or pair.lost:
            pair.lost.clear()
            pair.connect()
    assert pair.outcomes == [EVIDENCE]
    assert len(pair.executed) == len({seq for seq, _ in pair.executed})
