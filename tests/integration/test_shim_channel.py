"""Channels of guests whose firmware has the TPM: lanes of one carrier, and what a reset means for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from guest_frontend.link import Link
from manager_vm.errors import UnreachableError
from manager_vm.vchan.lanes import Lanes
from manager_vm.vchan.local import LocalClient
from manager_vm.wire import tpm
from tests.integration import raw
from tests.integration.harness import Manager, Refused, until

OK = tpm.RC.TPM_RC_SUCCESS
ZERO = bytes(32)
Open = Callable[[str], Link]


@pytest.fixture
def shims(manager: Manager) -> Iterator[Open]:
    """Links to vTPMs of the manager over the one carrier; what they are attached to is the test's."""
    with ExitStack() as stack:
        lanes = Lanes(lambda: LocalClient(manager.directory / "shims.sock"), "test")
        stack.callback(lanes.close)

        def open_link(name: str) -> Link:
            link = Link(f"shim:{name}", 10.0, connect=lambda where: lanes.lane(where.argument))
            stack.callback(link.close)
            link.open(5.0)
            return link

        yield open_link


def attached(manager: Manager, *names: str) -> None:
    for name in names:
        manager.ctl("create", name)
        manager.ctl("attach", name, f"shim:{name}", "--boot", "1")


def pcr(link: Link, number: int) -> bytes:
    return link.execute(raw.pcr_read(number))[-32:]


def test_the_guests_firmware_starts_its_tpm_up_and_may_use_all_localities(manager: Manager, shims: Open) -> None:
    attached(manager, "s")
    link = shims("s")
    assert raw.rc(link.execute(raw.pcr_extend(0))) == tpm.RC.TPM_RC_INITIALIZE
    assert raw.rc(link.execute(tpm.startup())) == OK
    assert raw.rc(link.execute(raw.pcr_extend(20), 2)) == OK  # allowed at localities 1 to 3
    assert raw.rc(link.execute(raw.pcr_extend(20), 5)) == tpm.RC.TPM_RC_LOCALITY
    platform = tpm.hierarchy_change_auth(tpm.TPM_RH_PLATFORM, b"firmware's own")
    assert raw.rc(link.execute(platform)) == OK  # empty before: the firmware's to close


def test_vtpms_share_a_carrier_and_nothing_else(manager: Manager, shims: Open) -> None:
    attached(manager, "s", "t")
    links = shims("s"), shims("t")
    for link in links:
        assert raw.rc(link.execute(tpm.startup())) == OK
    links[0].execute(raw.pcr_extend(7))
    assert pcr(links[1], 7) == ZERO != pcr(links[0], 7)
    manager.ctl("detach", "s")
    assert raw.rc(links[1].execute(raw.pcr_extend(7))) == OK


def test_a_lane_is_for_the_vtpm_that_it_is_named_after(manager: Manager) -> None:
    manager.ctl("create", "s")
    with pytest.raises(Refused, match="shim:s"):
        manager.ctl("attach", "s", "shim:other")


def test_what_comes_over_the_carrier_for_a_vtpm_with_a_channel_of_its_own_is_dropped(
    manager: Manager, shims: Open
) -> None:
    manager.add("own")
    with pytest.raises(UnreachableError, match="silent"):
        shims("own")
    assert manager.guest("own").pcr(7) == ZERO.hex()


def test_a_sleeping_guests_pcrs_come_back_and_a_reset_guests_do_not(manager: Manager, shims: Open) -> None:
    attached(manager, "s")
    link = shims("s")
    link.execute(tpm.startup())
    link.execute(raw.pcr_extend(7))
    value = pcr(link, 7)
    assert raw.rc(link.execute(tpm.shutdown(tpm.TPM_SU_STATE))) == OK
    manager.ctl("boot", "s", "2")
    link = reopened(link, shims)
    assert raw.rc(link.execute(tpm.startup(tpm.TPM_SU_STATE))) == OK
    assert pcr(link, 7) == value
    manager.ctl("boot", "s", "3")
    link = reopened(link, shims)
    assert raw.rc(link.execute(tpm.startup(tpm.TPM_SU_STATE))) & 0x0BF == tpm.RC.TPM_RC_VALUE  # of a parameter
    assert raw.rc(link.execute(tpm.startup())) == OK
    assert pcr(link, 7) == ZERO


def test_a_guest_that_sleeps_while_the_manager_starts_anew_finds_its_pcrs(manager: Manager, shims: Open) -> None:
    attached(manager, "s")
    link = shims("s")
    link.execute(tpm.startup())
    link.execute(raw.pcr_extend(7))
    value = pcr(link, 7)
    assert raw.rc(link.execute(tpm.shutdown(tpm.TPM_SU_STATE))) == OK
    manager.stop()
    manager.start()
    manager.ctl("boot", "s", "2")
    link = reopened(link, shims)
    assert raw.rc(link.execute(tpm.startup(tpm.TPM_SU_STATE))) == OK
    assert pcr(link, 7) == value


def test_a_session_goes_on_when_the_manager_was_started_anew(manager: Manager, shims: Open) -> None:
    attached(manager, "s")
    link = shims("s")
    link.execute(tpm.startup())
    manager.stop()
    manager.start()
    assert raw.rc(link.execute(raw.pcr_extend(7))) == OK
    until(lambda: manager.show("s")["live"], 5, "it is live")


def reopened(link: Link, shims: Open) -> Link:
    """A reset ends the session."""
    link.close()
    return shims("s")
