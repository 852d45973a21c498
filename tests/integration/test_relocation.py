"""A whole manager moves to another platform with its disk (RELOCATION.md): real swtpms as both hardware TPMs.

The receiver stops before the manager that came is started: a hardware TPM has one user at a time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from manager_vm.errors import MigrationError, RefusedError, StateError, VtpmManagerError
from manager_vm.store.manifest import Step
from manager_vm.trust.signing import SigningKey
from tests.integration import crashing, raw
from tests.integration.conftest import Make
from tests.integration.harness import Manager, Refused, until
from tests.integration.middle import Middle
from tests.integration.relocating import Platforms, host
from tests.integration.site import address

STAYS = {"state": "", "move": "", "peer": ""}


@pytest.fixture
def platforms(make: Make) -> Iterator[Platforms]:
    """Manager a has vTPM "v", which runs; b has none."""
    one = make(fresh=True)
    other = one.directory.parent / "n"
    other.mkdir(mode=0o711)
    two = Manager(other)
    one.start()
    two.start()
    one.add("v")
    found = Platforms(one, two)
    try:
        yield found
    finally:
        found.close()


def leave(platforms: Platforms) -> None:
    """Past the point of no return."""
    platforms.agree()
    host(platforms.a, "relocate_freeze", park=True)


def refused(manager: Manager, code: int = 6) -> str:
    """Why this manager does not start."""
    found, text = manager.refuse_to_start()
    assert found == code, text
    return text


def waits(manager: Manager) -> None:
    """A manager that has left starts, serves nothing and says so."""
    manager.launch()
    until(lambda: "it waits for that platform's word" in str(status(manager)), 20, "it waits")


def status(manager: Manager) -> dict[str, Any]:
    try:
        return dict(manager.ctl("status"))
    except Refused as error:  # it starts
        return {"warnings": [repr(error)]}


def serves(manager: Manager, value: str) -> None:
    """It has the vTPM, with its PCR and all."""
    manager.ctl("attach", "v")
    assert manager.guest("v").pcr(16) == value


# -- the way there ----------------------------------------------------------------------------------------------------


def test_a_manager_moves_with_its_disk_and_its_vtpms_go_on(platforms: Platforms) -> None:
    a, b = platforms.a, platforms.b
    value = a.guest("v").extend(16)
    agreed = platforms.agree()
    assert host(b, "relocate_tunnel", move=agreed["move"])["tunnel"] == agreed["tunnel"]
    with pytest.raises(StateError, match="taken already"):
        host(b, "relocate_tunnel", move=agreed["move"])
    assert a.guest("v").pcr(16) == value  # it serves on
    host(a, "relocate_freeze", park=True)
    with pytest.raises(StateError, match="has left"):
        host(a, "attach", name="v")
    assert host(a, "relocate_hand_over")["state"] == "settled"
    a.stop()
    b.stop()
    here = platforms.at(b, platforms.copy(a, "moved"), "here").start()
    assert here.ctl("status")["relocation"] == {"relocations": 1, **STAYS}
    assert here.ctl("platform", "show")["platform"] == platforms.names[b]
    serves(here, value)
    value = here.guest("v").extend(16)
    here.stop()
    here.start()
    serves(here, value)
    here.stop()
    assert "missing" in refused(a)  # its hardware TPM is nobody's any more
    assert "missing" in refused(b)  # the receiver has become the manager


def test_a_manager_moves_back_to_where_it_was_born(platforms: Platforms) -> None:
    a, b = platforms.a, platforms.b
    value = a.guest("v").extend(16)
    leave(platforms)
    host(a, "relocate_hand_over")
    a.stop()
    b.stop()
    here = platforms.at(b, platforms.copy(a, "moved"), "here").start()
    shutil.rmtree(a.state)
    a.start()  # a new manager, on the hardware TPM that was given up
    back = Platforms(here, a)
    leave(back)
    host(here, "relocate_hand_over")
    here.stop()
    a.stop()
    home = platforms.at(a, platforms.copy(here, "back"), "home").start()
    assert home.ctl("status")["relocation"] == {"relocations": 2, **STAYS}
    serves(home, value)


def test_one_order_moves_a_manager_once_and_each_order_is_for_one_way(platforms: Platforms) -> None:
    a = platforms.a
    stranger = SigningKey.create()
    for given, cause in (
        (platforms.order(manager="ab" * 32), "order"),
        (platforms.order(relocations=1), "order"),
        (platforms.order(source="elsewhere"), "order"),
        (platforms.order(destination="elsewhere"), "order"),
        (platforms.order(stranger), "order"),
    ):
        with pytest.raises(MigrationError) as error:
            platforms.agree(order=given)
        assert error.value.cause == cause
    assert a.ctl("status")["relocation"] == {"relocations": 0, **STAYS}


def test_a_platform_whose_manager_has_vtpms_is_refused(platforms: Platforms) -> None:
    platforms.b.add("w")
    with pytest.raises(RefusedError, match="use 'evacuate'") as error:
        platforms.agree()
    assert error.value.cause == "policy"


def test_a_receiver_makes_nothing_and_keeps_its_place_through_a_restart(platforms: Platforms) -> None:
    a, b = platforms.a, platforms.b
    value = a.guest("v").extend(16)
    platforms.agree()
    code = b.vtpmctl("create", "w").returncode
    assert code == 13
    b.stop()
    b.start()
    assert b.ctl("status")["relocation"]["state"] == "expecting"
    host(a, "relocate_freeze", park=True)
    host(a, "relocate_hand_over")
    a.stop()
    b.stop()
    serves(platforms.at(b, platforms.copy(a, "moved"), "here").start(), value)


@pytest.mark.parametrize("number", [0, 3, 4, *(pytest.param(n, marks=pytest.mark.full) for n in (1, 2, 5))])
def test_a_conversation_that_is_cut_or_changed_leaves_the_manager_where_it_is(
    platforms: Platforms, number: int
) -> None:
    a = platforms.a
    value = a.guest("v").extend(16)

    def between(at: int, source: bool, frame: bytes) -> bytes | None:
        hit = at == number // 2
        return frame if not hit else None if number % 2 else frame[:-1] + bytes([frame[-1] ^ 1])

    middle = Middle(address(platforms.b), between)
    with closing(middle), pytest.raises(VtpmManagerError):
        platforms.agree(to=middle.address)
    assert a.ctl("status")["relocation"]["state"] == ""
    assert a.guest("v").pcr(16) == value
    platforms.agree()  # nothing stands in the way


# -- and not there ----------------------------------------------------------------------------------------------------


def test_a_manager_that_has_agreed_agrees_again_only_when_it_has_given_that_up(platforms: Platforms) -> None:
    platforms.agree()
    with pytest.raises(StateError, match="relocate --abort"):
        platforms.agree()
    host(platforms.a, "relocate_abort")
    platforms.agree()


def test_a_move_that_is_given_up_before_the_point_of_no_return_changes_nothing(platforms: Platforms) -> None:
    a, b = platforms.a, platforms.b
    value = a.guest("v").extend(16)
    platforms.agree()
    assert host(a, "relocate_abort")["state"] == ""
    assert a.guest("v").pcr(16) == value
    assert b.ctl("status")["relocation"]["state"] == ""
    b.add("w")


@pytest.mark.parametrize("park", [False, True], ids=["held", "parked"])
def test_a_manager_that_has_left_is_taken_back_and_its_clients_go_on(platforms: Platforms, park: bool) -> None:
    a, b = platforms.a, platforms.b
    with closing(a.link("v")) as link:
        session = link.execute(raw.start_policy_session())
        platforms.agree()
        host(a, "relocate_freeze", park=park)
        assert host(a, "relocate_abort")["state"] == ""
        a.ctl("attach", "v")
        assert raw.rc(link.execute(raw.policy_secret(raw.handle_of(session), session[16:], 0))) == 0
    b.add("w")
    platforms.b.ctl("detach", "w")
    platforms.b.ctl("destroy", "w", "--yes")
    leave(platforms)  # another time
    assert host(a, "relocate_hand_over")["state"] == "settled"


def test_clients_that_never_rest_see_no_error_while_a_manager_leaves_and_is_taken_back(platforms: Platforms) -> None:
    a = platforms.a
    ended, counted, errors = threading.Event(), [0], list[str]()
    with closing(a.link("v")) as link:

        def work() -> None:
            while not ended.is_set():
                code = raw.rc(link.execute(raw.pcr_extend(16)))
                counted[0] += 1
                if code:
                    errors.append(hex(code))

        thread = threading.Thread(target=work)
        thread.start()
        for _ in range(3):
            platforms.agree()
            host(a, "relocate_freeze")
            count = counted[0]
            host(a, "relocate_abort")
            until(lambda before=count: counted[0] > before + 5, 10, "it goes on")  # type: ignore[misc]
        ended.set()
        thread.join()
    expected = bytes(32)
    for _ in range(counted[0]):
        expected = hashlib.sha256(expected + b"\x11" * 32).digest()
    assert (errors, a.guest("v").pcr(16)) == ([], expected.hex())


def test_a_manager_that_has_left_waits_through_its_restart_and_is_taken_back(platforms: Platforms) -> None:
    a = platforms.a
    value = a.guest("v").extend(16)
    leave(platforms)
    a.kill()
    waits(a)
    assert a.vtpmctl("list").returncode == 13
    assert host(a, "relocation")["state"] == "left"
    host(a, "relocate_abort")
    until(lambda: status(a).get("relocation") == {"relocations": 0, **STAYS} and "started" in status(a), 20)
    until(lambda: a.log().count("READY") > 2, 20, "it serves again")
    serves(a, value)


def test_a_manager_that_has_left_hands_over_after_its_restart(platforms: Platforms) -> None:
    a, b = platforms.a, platforms.b
    value = a.guest("v").extend(16)
    leave(platforms)
    a.kill()
    waits(a)
    assert host(a, "relocate_hand_over")["state"] == "settled"
    assert host(a, "relocation")["state"] == "settled"
    a.stop()
    b.stop()
    serves(platforms.at(b, platforms.copy(a, "moved"), "here").start(), value)


def test_what_the_receiver_has_given_up_is_never_claimed(platforms: Platforms) -> None:
    a, b = platforms.a, platforms.b
    value = a.guest("v").extend(16)
    leave(platforms)
    host(b, "relocate_abort")  # its own host says so
    with pytest.raises(RefusedError, match="not any more"):
        host(a, "relocate_hand_over")
    copy = platforms.copy(a, "moved")
    host(a, "relocate_abort")  # the receiver's word is there to be had, as often as it is asked for
    serves(a, value)
    b.stop()
    assert "not the anchored one" in refused(platforms.at(b, copy, "here"))


def test_the_word_that_leads_back_is_there_when_the_receiver_has_vtpms_of_its_own(platforms: Platforms) -> None:
    a, b = platforms.a, platforms.b
    value = a.guest("v").extend(16)
    leave(platforms)
    host(b, "relocate_abort")
    b.add("w")
    with pytest.raises(RefusedError, match="not any more"):
        host(a, "relocate_hand_over")
    host(a, "relocate_abort")
    serves(a, value)


def test_the_word_that_leads_back_is_there_when_another_manager_has_come_to_that_platform(platforms: Platforms) -> None:
    a, b = platforms.a, platforms.b
    value = a.guest("v").extend(16)
    leave(platforms)
    host(b, "relocate_abort")
    third = b.directory.parent / "third"
    third.mkdir(mode=0o711)
    other = Platforms(Manager(third).start(), b)
    leave(other)
    host(other.a, "relocate_hand_over")
    other.a.stop()
    listened = address(b)
    b.stop()
    here = platforms.at(b, platforms.copy(other.a, "moved"), "here", listened).start()
    here.add("w")
    host(a, "relocate_abort")
    serves(a, value)


@contextmanager
def held_back(platforms: Platforms) -> Iterator[Callable[[], None]]:
    """An ADOPT is on its way, and its source has given up waiting; the call lets it arrive."""
    arrives = threading.Event()

    def between(at: int, source: bool, frame: bytes) -> bytes:
        if at == 3:
            assert source
            middle.hang_up()
            assert arrives.wait(50)
        return frame

    middle = Middle(address(platforms.b), between)
    with closing(middle):
        with pytest.raises(VtpmManagerError):
            platforms.agree(to=middle.address)
        yield arrives.set


def test_an_adopt_that_comes_late_leaves_a_manager_that_has_left_its_way_back(platforms: Platforms) -> None:
    a, b = platforms.a, platforms.b
    value = a.guest("v").extend(16)
    with held_back(platforms) as arrives:
        agreed = platforms.agree()
        host(a, "relocate_freeze", park=True)
        arrives()
        until(lambda: host(b, "relocation")["move"] not in ("", agreed["move"]), 20, "it has made another place")
    with pytest.raises(RefusedError, match="not any more"):
        host(a, "relocate_hand_over")
    host(a, "relocate_abort")
    serves(a, value)
    leave(platforms)  # the place that nobody asks for any more is no obstacle
    assert host(a, "relocate_hand_over")["state"] == "settled"


def test_an_adopt_that_comes_late_takes_no_place_that_was_claimed(platforms: Platforms) -> None:
    a, b = platforms.a, platforms.b
    value = a.guest("v").extend(16)
    with held_back(platforms) as arrives:
        leave(platforms)
        host(a, "relocate_hand_over")
        arrives()
        until(lambda: "the place is taken" in b.log(), 20, "it is refused")
    a.stop()
    b.stop()
    serves(platforms.at(b, platforms.copy(a, "moved"), "here").start(), value)


def test_a_place_that_was_claimed_is_never_given_up(platforms: Platforms) -> None:
    a, b = platforms.a, platforms.b
    leave(platforms)
    host(a, "relocate_hand_over")
    with pytest.raises(MigrationError, match="is taken"):
        host(b, "relocate_abort")


# -- copies -----------------------------------------------------------------------------------------------------------


def test_no_copy_of_the_disk_serves_anywhere_but_the_one_that_was_claimed_for(platforms: Platforms) -> None:
    a, b = platforms.a, platforms.b
    value = a.guest("v").extend(16)
    before = platforms.copy(a, "before")
    platforms.agree()
    agreed = platforms.copy(a, "agreed")
    host(a, "relocate_freeze", park=True)
    left = platforms.copy(a, "left")
    b.stop()
    assert "sealed to" in refused(platforms.at(b, before, "before-b"))
    assert "never written" in refused(platforms.at(b, agreed, "agreed-b"))
    early = platforms.at(b, left, "left-b")
    assert "never written" in refused(early)
    b.start()
    host(a, "relocate_hand_over")
    a.stop()
    b.stop()
    moved = platforms.copy(a, "moved")
    second = platforms.copy(a, "second")
    here = platforms.at(b, moved, "here").start()
    serves(here, value)
    here.stop()
    assert "not the anchored one" in refused(platforms.at(b, second, "second-b"))
    assert "not the anchored one" in refused(early)
    assert "not the anchored one" in refused(platforms.arrived[1])  # of the time when it had agreed
    serves(here.start(), value)


def test_a_pending_file_of_the_last_commit_opens_nowhere(platforms: Platforms) -> None:
    a, b = platforms.a, platforms.b
    value = a.guest("v").extend(16)
    platforms.agree()
    dies(platforms, Step.WRITTEN, "relocate_freeze", park=False)
    copy = platforms.copy(a, "pending")
    assert (copy / "manifest.pending").exists()
    a.start()
    assert a.ctl("status")["relocation"]["state"] == "agreed"
    assert a.show("v")["state"] == "failed" and value
    b.stop()
    assert "never written" in refused(platforms.at(b, copy, "here"))


# -- crashes ----------------------------------------------------------------------------------------------------------


def dies(platforms: Platforms, point: str, verb: str, **args: Any) -> None:
    """Manager a dies by SIGKILL at this point of the first commit in ``verb``."""
    a = platforms.a
    armed = a.directory / "armed"
    ordinary = a.program
    a.stop()
    a.program = crashing.program(a.directory, point, armed)
    a.start()
    armed.touch()
    with pytest.raises(VtpmManagerError):
        host(a, verb, **args)
    a.killed()
    armed.unlink()
    a.program = ordinary


CORE = (Step.WRITTEN, crashing.BEFORE, crashing.AFTER)
POINTS = [each if each in CORE else pytest.param(each, marks=pytest.mark.full) for each in crashing.POINTS]


@pytest.mark.parametrize("point", POINTS)
def test_a_source_that_dies_in_the_commit_of_the_point_of_no_return_has_left_or_not(
    platforms: Platforms, point: str
) -> None:
    a, b = platforms.a, platforms.b
    platforms.agree()
    dies(platforms, point, "relocate_freeze", park=True)
    a.launch()
    until(lambda: status(a).get("relocation"), 20, "it says where it is")
    if status(a)["relocation"]["state"] == "agreed":
        assert host(a, "relocate_abort")["state"] == ""
        b.add("w")
    else:
        assert host(a, "relocate_hand_over")["state"] == "settled"
        a.stop()
        b.stop()
        platforms.at(b, platforms.copy(a, "moved"), "here").start().ctl("attach", "v")


@pytest.mark.parametrize("point", [crashing.BEFORE, crashing.AFTER])
def test_a_receiver_that_dies_around_its_claim_claims_when_it_is_asked_again(platforms: Platforms, point: str) -> None:
    a, b = platforms.a, platforms.b
    value = a.guest("v").extend(16)
    armed = b.directory / "armed"
    ordinary = b.program
    b.stop()
    b.program = crashing.program(b.directory, point, armed)
    b.start()
    leave(platforms)
    armed.touch()
    with pytest.raises(VtpmManagerError):
        host(a, "relocate_hand_over")
    b.killed()
    armed.unlink()
    b.program = ordinary
    b.start()
    assert host(a, "relocate_hand_over")["state"] == "settled"
    a.stop()
    b.stop()
    serves(platforms.at(b, platforms.copy(a, "moved"), "here").start(), value)


def test_a_manager_that_cannot_leave_for_want_of_room_serves_on_the_channels_that_it_had(
    platforms: Platforms, full: Callable[[Manager], Path]
) -> None:
    a = platforms.a
    value = a.guest("v").extend(16)
    filler = full(a)
    a.ctl("status")
    assert a.guest("v").pcr(16) == value
    filler.unlink()
    platforms.agree()
    filler.write_bytes(bytes(os.statvfs(a.state).f_bavail * os.statvfs(a.state).f_frsize))
    with pytest.raises(VtpmManagerError, match="could not be parked"):
        host(a, "relocate_freeze", park=True)
    assert a.guest("v").pcr(16) == value
    filler.unlink()
    assert host(a, "relocate_freeze", park=True)["state"] == "left"


def test_a_second_start_beside_a_manager_that_has_left_is_refused(platforms: Platforms) -> None:
    leave(platforms)
    second = Manager(platforms.a.directory)
    code, text = second.refuse_to_start()
    assert (code, "another manager is using" in text) == (8, True)


def test_a_manager_that_has_left_with_its_processes_ends_at_once(platforms: Platforms) -> None:
    platforms.agree()
    host(platforms.a, "relocate_freeze")
    platforms.a.stop()  # within its time, although all vTPMs are held
    waits(platforms.a)
    host(platforms.a, "relocate_abort")
    until(lambda: platforms.a.vtpmctl("list").returncode == 0, 20, "it serves again")
    assert platforms.a.show("v")["state"] == "failed"
