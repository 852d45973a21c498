"""protocol/channel_server alone: what the manager does about each message (CHANNEL.md section 3)."""

from __future__ import annotations

import pytest

from manager_vm.errors import LocalProtocolError
from manager_vm.protocol.channel_server import Action, ChannelServer, Execute, Send, SessionState
from manager_vm.wire.channel import (
    Bye,
    Command,
    Error,
    Hello,
    Message,
    NotAccepted,
    Ping,
    Pong,
    Reason,
    Response,
    Welcome,
)
from tests.pairs import FAILURE, OTHER_SESSION, SESSION, command, response

ONE, TWO, THREE = command(1), command(2), command(3)


def greeted(server: ChannelServer | None = None, session: bytes = SESSION) -> ChannelServer:
    """A manager's automaton that has answered HELLO."""
    server = server or ChannelServer()
    (action,) = server.receive(Hello(session))
    assert isinstance(action, Send) and isinstance(action.message, Welcome)
    return server


def executed(server: ChannelServer, seq: int, command_: bytes) -> list[Action]:
    """Let it execute one command."""
    assert server.receive(Command(seq, 0, command_)) == [Execute(seq, 0, command_)]
    return server.executed(response(command_))


def assert_closed(server: ChannelServer, actions: list[Action]) -> None:
    """An Error, a Close, and nothing more until the next HELLO."""
    assert [type(action).__name__ for action in actions] == ["Send", "Close"]
    assert isinstance(actions[0], Send) and isinstance(actions[0].message, Error)
    again = server.receive(Command(server.last_seq + 1, 0, THREE))
    assert isinstance(again[0], Send) and isinstance(again[0].message, Error)


# -- the manager: seq -----------------------------------------------------------------------------------------


def test_the_next_seq_is_executed_and_its_response_sent() -> None:
    server = greeted()
    assert executed(server, 1, ONE) == [Send(Response(1, response(ONE)))]
    assert executed(server, 2, TWO) == [Send(Response(2, response(TWO)))]
    assert server.last_seq == 2


def test_the_last_seq_again_is_answered_from_the_reply_cache_and_not_executed() -> None:
    server = greeted()
    executed(server, 1, ONE)
    for _ in range(3):
        assert server.receive(Command(1, 0, ONE)) == [Send(Response(1, response(ONE)))]


def test_a_resent_command_that_still_executes_waits_for_its_answer() -> None:
    server = greeted()
    server.receive(Command(1, 0, ONE))
    assert server.receive(Command(1, 0, ONE)) == []
    assert server.executed(response(ONE)) == [Send(Response(1, response(ONE)))]


def test_a_command_whose_outcome_is_unknown_fails_and_is_never_executed_again() -> None:
    server = greeted()
    server.receive(Command(1, 0, ONE))
    assert server.outcome_unknown() == [Send(Response(1, FAILURE))]
    for _ in range(2):
        assert server.receive(Command(1, 0, ONE)) == [Send(Response(1, FAILURE))]
    assert executed(server, 2, TWO) == [Send(Response(2, response(TWO)))]


def test_the_last_seq_after_the_reply_cache_was_lost_fails_and_is_not_executed() -> None:
    server = greeted(ChannelServer(SessionState(last_seq=5)))
    assert server.receive(Command(5, 0, ONE)) == [Send(Response(5, FAILURE))]


@pytest.mark.parametrize("again", [Command(1, 0, TWO), Command(1, 1, ONE)])
@pytest.mark.parametrize("outcome", ["known", "unknown", "running"])
def test_the_same_seq_with_other_bytes_or_locality_is_a_protocol_error(again: Command, outcome: str) -> None:
    server = greeted(ChannelServer(localities=frozenset({0, 1})))
    server.receive(Command(1, 0, ONE))
    if outcome == "known":
        server.executed(response(ONE))
    elif outcome == "unknown":
        server.outcome_unknown()
    assert_closed(server, server.receive(again))


@pytest.mark.parametrize("seq", [0, 2, 3, 5, 2**63 - 1])
def test_any_other_seq_is_a_protocol_error(seq: int) -> None:
    server = greeted(ChannelServer(SessionState(last_seq=3)) if seq != 0 else None)
    if seq == 3:
        server = greeted(ChannelServer(SessionState(last_seq=4)))
    assert_closed(server, server.receive(Command(seq, 0, ONE)))


def test_a_command_while_another_executes_is_a_protocol_error() -> None:
    server = greeted()
    server.receive(Command(1, 0, ONE))
    assert_closed(server, server.receive(Command(2, 0, TWO)))


def test_a_command_before_hello_is_a_protocol_error() -> None:
    server = ChannelServer()
    assert_closed(server, server.receive(Command(1, 0, ONE)))
    greeted(server)
    server.new_peer()
    assert_closed(server, server.receive(Command(1, 0, ONE)))


@pytest.mark.parametrize("message", [Welcome(SESSION, 1, False), Response(1, ONE), Pong(1), Error("x")])
def test_a_message_of_the_managers_is_a_protocol_error(message: Message) -> None:
    server = greeted()
    assert_closed(server, server.receive(message))


@pytest.mark.parametrize("hello", [Hello(SESSION, 0, 0), Hello(SESSION, 0, 1, 9)])
def test_a_front_end_that_cannot_talk_to_us_is_told_so(hello: Hello) -> None:
    server = ChannelServer()
    actions = server.receive(hello)
    assert_closed(server, actions)
    assert f"version {hello.version} with commands of {hello.max_command} bytes" in str(actions[0])


def test_a_refused_command_is_not_accepted_and_its_seq_is_used_again() -> None:
    server = greeted()
    server.receive(Command(1, 0, ONE))
    assert server.refused(Reason.PARKED) == [Send(NotAccepted(1, Reason.PARKED))]
    assert executed(server, 1, TWO) == [Send(Response(1, response(TWO)))]


# -- the manager: sessions ------------------------------------------------------------------------------------


def test_a_known_session_resumes_with_its_reply_cache() -> None:
    server = greeted()
    executed(server, 1, ONE)
    server.new_peer()
    assert server.receive(Hello(SESSION, 1)) == [Send(Welcome(SESSION, 2, True))]
    assert server.receive(Command(1, 0, ONE)) == [Send(Response(1, response(ONE)))]


def test_a_new_session_starts_at_last_seq_plus_one_without_the_old_ones_replies() -> None:
    server = greeted()
    executed(server, 1, ONE)
    assert server.receive(Hello(OTHER_SESSION)) == [Send(Welcome(OTHER_SESSION, 2, False))]
    assert server.receive(Command(1, 0, ONE)) == [Send(Response(1, FAILURE))]
    assert executed(server, 2, ONE) == [Send(Response(2, response(ONE)))]


@pytest.mark.parametrize("ending", ["hello", "bye"])
def test_a_command_of_a_session_that_is_over_uses_its_seq_and_its_answer_goes_to_nobody(ending: str) -> None:
    server = greeted()
    server.receive(Command(1, 0, ONE))
    if ending == "bye":
        assert server.receive(Bye()) == []
    assert server.receive(Hello(OTHER_SESSION)) == [Send(Welcome(OTHER_SESSION, 2, False))]
    assert server.receive(Command(2, 0, TWO)) == [Send(NotAccepted(2, Reason.BUSY))]
    assert server.executed(response(ONE)) == []
    assert executed(server, 2, TWO) == [Send(Response(2, response(TWO)))]


@pytest.mark.parametrize("how", ["refused", "unknown"])
def test_the_seq_promised_to_a_new_session_holds_however_the_old_command_ends(how: str) -> None:
    server = greeted()
    server.receive(Command(1, 0, ONE))
    assert server.receive(Hello(OTHER_SESSION)) == [Send(Welcome(OTHER_SESSION, 2, False))]
    assert (server.refused(Reason.PARKED) if how == "refused" else server.outcome_unknown()) == []
    assert executed(server, 2, TWO) == [Send(Response(2, response(TWO)))]


def test_a_command_that_has_come_but_not_begun_is_not_in_what_a_park_keeps() -> None:
    server = greeted()
    executed(server, 1, ONE)
    before = server.state
    assert server.receive(Command(2, 0, TWO)) == [Execute(2, 0, TWO)]
    assert server.state == before
    assert server.refused(Reason.PARKED) == [Send(NotAccepted(2, Reason.PARKED))]


def test_a_parked_session_resumes() -> None:
    server = greeted()
    executed(server, 1, ONE)
    later = ChannelServer(server.state)
    assert later.receive(Hello(SESSION, 1)) == [Send(Welcome(SESSION, 2, True))]
    assert later.receive(Command(1, 0, ONE)) == [Send(Response(1, response(ONE)))]


def test_an_outcome_without_a_running_command_is_our_own_error() -> None:
    server = greeted()
    with pytest.raises(LocalProtocolError):
        server.executed(b"")
    with pytest.raises(LocalProtocolError):
        server.outcome_unknown()
    with pytest.raises(LocalProtocolError):
        server.refused(Reason.BUSY)


# -- the manager: command filter ------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [b"", ONE[:9], ONE + b"\0", ONE[:-1], b"\x80\x01\xff\xff\xff\xff" + ONE[6:]])
def test_a_command_whose_length_is_not_its_size_field_is_answered_and_uses_its_seq(bad: bytes) -> None:
    server = greeted()
    reply = [Send(Response(1, bytes.fromhex("80010000000a00000142")))]
    assert server.receive(Command(1, 0, bad)) == reply
    assert server.receive(Command(1, 0, bad)) == reply
    executed(server, 2, ONE)


def test_a_locality_that_the_wiring_does_not_allow_is_answered_and_uses_its_seq() -> None:
    server = greeted(ChannelServer(localities=frozenset({0, 3})))
    assert server.receive(Command(1, 2, ONE)) == [Send(Response(1, bytes.fromhex("80010000000a00000907")))]
    assert server.receive(Command(2, 3, ONE)) == [Execute(2, 3, ONE)]


def test_ping_is_answered_at_any_time() -> None:
    server = greeted()
    server.receive(Command(1, 0, ONE))
    assert server.receive(Ping(77)) == [Send(Pong(77))]
