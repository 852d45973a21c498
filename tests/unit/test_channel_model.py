"""The pair of automata under any order of losses, repeats, restarts and outages: nothing runs twice, no answer lies."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from manager_vm.protocol.channel_server import ChannelServer
from manager_vm.wire.channel import Reason
from tests.pairs import FAILURE, RETRY, Pair, command, response

FAIR = ("submit", "run", "tick", "second", "lose to manager", "lose to guest", "finish", "die", "refuse", "serve",
        "slow", "fast", "reconnect", "restart manager")  # fmt: skip
UNFAIR = (*FAIR, "repeat to manager", "repeat to guest", "swap to manager", "new front end", "abandon")


def step(pair: Pair, event: str, submitted: list[bytes]) -> None:
    """One event of a model run."""
    if event == "submit":
        if pair.client.idle:
            submitted.append(command(len(submitted)))
            pair.submit(submitted[-1])
    elif event == "run":
        pair.run()
    elif event in ("tick", "second"):
        pair.run()  # latency is well below a second
        pair.pass_time(0.1 if event == "tick" else 1.0)
    elif event.startswith(("lose", "repeat", "swap")):
        line = pair.to_manager if event.endswith("manager") else pair.to_guest
        if line and event.startswith("lose"):
            line.popleft()
        elif line and event.startswith("repeat"):
            line.append(line[0])
        elif line:
            line.rotate(1)
    elif event in ("finish", "die"):
        if pair.running is not None:
            pair.finish() if event == "finish" else pair.die()
    elif event in ("refuse", "serve"):
        pair.reason = Reason.QUIESCED if event == "refuse" else None
    elif event in ("slow", "fast"):
        pair.slow = event == "slow"
    elif event == "restart manager":
        if pair.running is None:
            pair.replace_server(ChannelServer(pair.server.state))
            pair.to_manager.clear()
            pair.to_guest.clear()
    elif event == "new front end":
        pair.replace_client(len(submitted).to_bytes(16, "big"))
    elif event == "abandon":
        pair.client.abandon()
    if event == "reconnect" or pair.lost:
        pair.lost.clear()
        pair.connect()


@settings(max_examples=1000)
@given(st.lists(st.sampled_from(UNFAIR), max_size=60))
def test_no_losses_repeats_restarts_or_swaps_make_one_seq_or_one_command_run_twice(events: list[str]) -> None:
    pair, submitted = Pair().connect().run(), list[bytes]()
    for event in events:
        step(pair, event, submitted)
    seqs = [seq for seq, _ in pair.executed]
    assert seqs == sorted(set(seqs))


@settings(max_examples=1000)
@given(st.lists(st.sampled_from(FAIR), max_size=60))
def test_once_the_line_is_good_again_every_command_has_one_answer_and_it_is_true(events: list[str]) -> None:
    pair, submitted = Pair().connect().run(), list[bytes]()
    for event in [*events, "serve", "fast", "finish", *["second"] * 12, "run"]:
        step(pair, event, submitted)
    assert pair.client.idle
    assert len(pair.answers) == len(submitted)
    ran = [each for _, each in pair.executed]
    assert len(ran) == len(set(ran))
    for each, answer in zip(submitted, pair.answers, strict=True):
        assert answer in (response(each), FAILURE, RETRY)
        assert (answer == response(each)) <= (each in ran)
        assert (answer == RETRY) <= (each not in ran)
