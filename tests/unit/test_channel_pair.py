"""protocol/channel_client and channel_server as a connected pair: losses, outages, waiting (CHANNEL.md 3, 4)."""

from __future__ import annotations

import pytest

from manager_vm.errors import LocalProtocolError
from manager_vm.protocol.channel_client import (
    FRESH,
    HELLO_INTERVAL,
    KERNEL_PATIENCE,
    OVERDUE,
    SILENCE,
    ChannelClient,
    State,
)
from manager_vm.protocol.channel_server import ChannelServer, SessionState
from manager_vm.protocol.client_events import Answer, Moved, Send
from manager_vm.wire.channel import Bye, Command, Error, Hello, NotAccepted, Ping, Pong, Reason, Response, Welcome
from tests.pairs import FAILURE, OTHER_SESSION, RETRY, SESSION, Pair, command, response

ONE, TWO, THREE = command(1), command(2), command(3)


def ready(pair: Pair | None = None) -> Pair:
    """A pair after its greeting."""
    return (pair or Pair()).connect().run()


def test_commands_go_through_one_by_one() -> None:
    pair = ready()
    for number in (1, 2, 3):
        pair.submit(command(number))
        pair.run()
    assert pair.executed == [(1, ONE), (2, TWO), (3, THREE)]
    assert pair.answers == [response(ONE), response(TWO), response(THREE)]


def test_an_answer_lost_with_its_connection_comes_from_the_reply_cache() -> None:
    pair = ready()
    pair.submit(ONE)
    pair.deliver_to_manager(pair.to_manager.popleft())
    pair.connect().run()
    assert (pair.executed, pair.answers) == ([(1, ONE)], [response(ONE)])


def test_a_command_lost_with_its_connection_is_written_again() -> None:
    pair = ready()
    pair.submit(ONE)
    pair.connect().run()
    assert (pair.executed, pair.answers) == ([(1, ONE)], [response(ONE)])


@pytest.mark.parametrize("lost", ["command", "answer"])
def test_a_command_or_answer_lost_on_a_living_connection_is_noticed(lost: str) -> None:
    pair = ready()
    pair.submit(ONE)
    if lost == "command":
        pair.to_manager.clear()
    else:
        pair.deliver_to_manager(pair.to_manager.popleft())
        pair.to_guest.clear()
    for _ in range(int(OVERDUE) + 1):
        pair.pass_time(1.0)
        pair.run()
    assert (pair.executed, pair.answers, pair.lost) == ([(1, ONE)], [response(ONE)], [])


def test_a_slow_command_is_asked_about_and_not_executed_twice() -> None:
    pair = ready()
    pair.slow = True
    pair.submit(ONE)
    for _ in range(60):
        pair.run()
        pair.pass_time(1.0)
    pair.run()
    assert pair.answers == []
    pair.finish()
    pair.run()
    assert (pair.executed, pair.answers, pair.lost) == ([(1, ONE)], [response(ONE)], [])


@pytest.mark.parametrize("last_seq", [0, 9])
def test_a_command_written_to_a_manager_that_forgot_the_session_fails(last_seq: int) -> None:
    pair = ready()
    pair.submit(ONE)
    pair.replace_server(ChannelServer(SessionState(last_seq=last_seq)))
    pair.connect().run()
    pair.submit(TWO)
    pair.run()
    assert (pair.executed, pair.answers) == ([(last_seq + 1, TWO)], [FAILURE, response(TWO)])


def test_a_new_front_end_goes_on_where_the_old_one_ended() -> None:
    pair = ready()
    pair.submit(ONE)
    pair.run()
    pair.replace_client(OTHER_SESSION)
    pair.run()
    pair.submit(TWO)
    pair.run()
    assert pair.executed == [(1, ONE), (2, TWO)]


def test_a_command_that_is_not_accepted_is_tried_again_and_then_answered_retry() -> None:
    pair = ready()
    pair.reason = Reason.STARTING
    pair.submit(ONE)
    pair.run()
    pair.pass_time(KERNEL_PATIENCE - 0.1)
    assert pair.run().answers == []
    pair.pass_time(0.11)
    assert pair.run().answers == [RETRY]
    pair.reason = None
    pair.submit(TWO)
    assert pair.run().executed == [(1, TWO)]


def test_a_command_that_was_not_accepted_runs_once_the_vtpm_serves() -> None:
    pair = ready()
    pair.reason = Reason.QUIESCED
    pair.submit(ONE)
    pair.run()
    pair.reason = None
    pair.pass_time(0.06)
    assert pair.run().answers == [response(ONE)]


def test_a_command_that_was_not_accepted_is_tried_again_after_an_eighth_of_its_wait() -> None:
    client = ChannelClient(SESSION, patience=100.0)
    client.connected(0.0)
    client.receive(Welcome(SESSION, 1, True), 0.0)
    client.submit(ONE, 0, 0.0)
    for waited, pause in ((0.001, 0.002), (0.08, 0.01), (0.4, 0.05), (4.0, 0.05)):
        client.receive(Pong(1), waited)  # a sign of life
        client.receive(NotAccepted(1, Reason.QUIESCED), waited)
        assert Send(Command(1, 0, ONE)) not in client.tick(waited + pause - 0.0001)
        assert Send(Command(1, 0, ONE)) in client.tick(waited + pause)


def test_a_manager_that_greets_gets_a_refused_command_at_once() -> None:
    client = ChannelClient(SESSION, patience=100.0)
    client.connected(0.0)
    client.receive(Welcome(SESSION, 1, True), 0.0)
    client.submit(ONE, 0, 0.0)
    assert client.receive(NotAccepted(1, Reason.MOVED), 4.0) == [Moved()]
    client.disconnected()
    client.connected(4.001)
    assert client.receive(Welcome(SESSION, 7, False), 4.002) == [Send(Command(7, 0, ONE))]


def test_a_front_end_on_hold_writes_no_command_and_is_patient_until_it_is_welcome() -> None:
    client = ChannelClient(SESSION, patience=0.45)
    client.connected(0.0)
    client.receive(Welcome(SESSION, 1, True), 0.0)
    assert client.submit(ONE, 0, 0.0) == [Send(Command(1, 0, ONE))]
    assert client.receive(NotAccepted(1, Reason.HOLD), 0.1) == [Send(Hello(SESSION, 0))]
    assert client.receive(Pong(1), 0.2) == []
    assert client.tick(0.4) == []
    assert client.tick(0.46) == [Answer(RETRY)]
    assert client.submit(TWO, 0, 0.5) == []
    assert client.receive(Welcome(SESSION, 1, True), 0.6) == [Send(Command(1, 0, TWO))]


def test_a_written_command_is_never_answered_locally_while_its_outcome_is_open() -> None:
    pair = ready()
    pair.submit(ONE)
    for _ in range(30):
        pair.pass_time(1.0)  # nothing is delivered
    assert pair.answers == []
    assert pair.lost != []
    pair.connect().run()
    assert (pair.executed, pair.answers) == ([(1, ONE)], [response(ONE)])


def test_a_command_that_was_never_written_is_answered_retry_in_time() -> None:
    pair = Pair()  # no connection at all
    pair.submit(ONE)
    pair.pass_time(KERNEL_PATIENCE - 0.01)
    assert pair.answers == []
    pair.pass_time(0.02)
    assert pair.answers == [RETRY]
    assert ready(pair).executed == []


def test_after_a_silence_a_ping_goes_first_and_the_command_follows_the_pong() -> None:
    pair = ready()
    pair.now += FRESH + 0.1
    pair.submit(ONE)
    assert [type(message) for message in pair.to_manager] == [Ping]
    assert pair.run().answers == [response(ONE)]


def test_without_a_pong_the_command_is_not_written_and_answered_retry() -> None:
    pair = ready()
    pair.now += FRESH + 0.1
    pair.submit(ONE)
    pair.pass_time(KERNEL_PATIENCE + 0.01)
    assert not any(isinstance(message, Command) for message in pair.to_manager)
    assert pair.answers == [RETRY]


def test_a_manager_that_is_silent_too_long_counts_as_gone() -> None:
    pair = ready()
    for _ in range(3):
        pair.pass_time(1.0)
    assert pair.lost == []
    pair.pass_time(SILENCE - 3.0)
    assert pair.lost == ["the manager is silent"]
    assert pair.client.state is State.DISCONNECTED


def test_pings_keep_an_idle_connection() -> None:
    pair = ready()
    for _ in range(20):
        pair.pass_time(1.0)
        pair.run()
    assert (pair.lost, pair.client.state) == ([], State.READY)


def test_hello_is_repeated_each_second_until_welcome_comes() -> None:
    pair = Pair().connect()
    for _ in range(3):
        pair.pass_time(1.0)
    assert [type(message) for message in pair.to_manager] == [Hello] * 4
    assert pair.run().client.state is State.READY


def test_a_welcome_for_another_session_is_not_ours() -> None:
    pair = Pair().connect()
    pair.deliver_to_guest(Welcome(OTHER_SESSION, 1, False))
    assert pair.client.state is State.GREETING


def test_an_error_ends_the_connection_and_names_the_cause() -> None:
    pair = ready()
    pair.deliver_to_guest(Error("too fast"))
    assert pair.lost == ["the manager closed the session: too fast"]


def test_the_answer_to_an_abandoned_command_is_dropped_and_the_queued_one_is_next() -> None:
    pair = ready()
    pair.slow = True
    pair.submit(ONE)
    pair.run()
    pair.client.abandon()
    pair.submit(TWO)
    pair.slow = False
    pair.finish()
    assert pair.run().executed == [(1, ONE), (2, TWO)]
    assert pair.answers == [response(TWO)]


def test_a_command_queued_behind_an_abandoned_one_is_answered_retry_in_time() -> None:
    pair = ready()
    pair.slow = True
    pair.submit(ONE)
    pair.run()
    pair.client.abandon()
    pair.submit(TWO)
    pair.pass_time(KERNEL_PATIENCE + 0.01)
    assert pair.answers == [RETRY]
    pair.finish()
    assert pair.run().executed == [(1, ONE)]
    assert pair.client.idle


def test_an_abandoned_command_that_was_not_accepted_is_not_tried_again() -> None:
    pair = ready()
    pair.submit(ONE)
    pair.client.abandon()
    pair.submit(TWO)
    pair.to_manager.clear()
    pair.deliver_to_guest(NotAccepted(1, Reason.STARTING))
    pair.pass_time(0.01)
    assert pair.run().executed == [(1, TWO)]


def test_a_late_response_to_another_seq_is_ignored() -> None:
    pair = ready()
    pair.slow = True
    pair.submit(ONE)
    pair.deliver_to_guest(Response(9, FAILURE))
    assert pair.answers == []


def test_two_commands_at_once_are_our_own_error() -> None:
    pair = ready()
    pair.submit(ONE)
    with pytest.raises(LocalProtocolError):
        pair.submit(TWO)


def test_goodbye_forgets_the_session_and_seq_goes_on() -> None:
    pair = ready()
    pair.submit(ONE)
    pair.run()
    pair.at_guest(pair.client.goodbye())
    assert list(pair.to_manager) == [Bye()]
    pair.run()
    pair.replace_client(SESSION)
    pair.run()
    assert pair.server.receive(Command(1, 0, ONE)) != []
    pair.submit(TWO)
    assert pair.run().executed == [(1, ONE), (2, TWO)]


def test_the_times_are_those_of_the_specification() -> None:
    assert (FRESH, KERNEL_PATIENCE, HELLO_INTERVAL, OVERDUE, SILENCE) == (0.5, 0.45, 1.0, 2.0, 3.5)


@pytest.mark.parametrize("seconds", [0.0, 0.3, 1.0, 5.0])
def test_the_deadline_is_never_past_what_tick_has_to_do(seconds: float) -> None:
    pair = Pair()
    pair.submit(ONE)
    assert 0.0 <= pair.client.deadline(pair.now + seconds) <= max(KERNEL_PATIENCE - seconds, 0.0) + 1e-6
