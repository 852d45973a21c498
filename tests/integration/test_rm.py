"""guest_frontend/rm: handles that the TPM uses again, outages between two clients, what a capability list says."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from guest_frontend.link import Link
from guest_frontend.rm import ResourceManager, Space
from manager_vm.wire import tpm
from manager_vm.wire.tpm import CC, RC
from tests.integration import raw
from tests.integration.harness import Manager, until
from tests.integration.raw import handle_of, rc

TRANSIENT = 0x80000000
TPM_CC_SEQUENCE_COMPLETE, TPM_CC_HASH_SEQUENCE_START = 0x13E, 0x186


def hash_start() -> bytes:
    """TPM2_HashSequenceStart (Part 3, 17.3), SHA-256."""
    return tpm.command(TPM_CC_HASH_SEQUENCE_START, tpm.sized(b"") + struct.pack(">H", tpm.TPM_ALG_SHA256))


def complete(sequence: int) -> bytes:
    """TPM2_SequenceComplete (Part 3, 17.6)."""
    rest = tpm.sized(b"x") + struct.pack(">I", tpm.TPM_RH_NULL)
    return tpm.command(TPM_CC_SEQUENCE_COMPLETE, rest, handles=(sequence,), auths=1)


def left_in(link: Link) -> int:
    """How many transient objects the vTPM itself holds."""
    answer = link.execute(tpm.get_capability(tpm.TPM_CAP_HANDLES, TRANSIENT, 64))
    return int.from_bytes(answer[15:19], "big")


@pytest.fixture
def link(manager: Manager) -> Iterator[Link]:
    """To vTPM "a"; a command that it does not serve is given up after half a second."""
    manager.add("a")
    link = Link(manager.channel("a"), patience=0.5)
    link.open(5)
    yield link
    link.close()


def test_a_handle_that_a_completed_sequence_gave_back_belongs_to_the_next_object_alone(link: Link) -> None:
    rm, one, other = ResourceManager(link), Space(), Space()
    sequence = handle_of(rm.execute(one, hash_start()))
    assert rc(rm.execute(one, complete(sequence))) == 0
    key = handle_of(rm.execute(one, raw.create_primary()))
    assert rc(rm.execute(other, tpm.get_random(8))) == 0
    assert rc(rm.execute(one, tpm.read_public(key))) == 0
    assert rc(rm.execute(one, tpm.flush_context(sequence))) != 0
    assert rc(rm.execute(one, tpm.read_public(key))) == 0
    rm.leave(one)
    assert left_in(link) == 0


def test_an_outage_between_two_clients_turns_costs_neither_what_it_has(manager: Manager, link: Link) -> None:
    rm, one, other = ResourceManager(link), Space(), Space()
    keys = {id(space): handle_of(rm.execute(space, raw.create_primary())) for space in (one, other)}
    manager.ctl("stop", "a")
    assert rc(rm.execute(one, tpm.read_public(keys[id(one)]))) == RC.TPM_RC_RETRY
    assert rc(rm.execute(one, tpm.read_public(keys[id(one)]))) == RC.TPM_RC_RETRY
    manager.ctl("start", "a")
    until(lambda: rc(rm.execute(one, tpm.get_random(8))) == 0, what="the vTPM serves again")
    for space in (one, other, one):
        assert rc(rm.execute(space, tpm.read_public(keys[id(space)]))) == 0
    rm.leave(one)
    rm.leave(other)
    assert left_in(link) == 0


class Absent:
    """The TPM behind it does not serve the first ``times`` capability requests."""

    def __init__(self, device: Link, times: int) -> None:
        self._device = device
        self._times = times

    def execute(self, command: bytes) -> bytes:
        if self._times and tpm.command_code(command) == CC.TPM2_GetCapability:
            self._times -= 1
            return tpm.error_response(RC.TPM_RC_RETRY)
        return self._device.execute(command)


def test_no_handle_is_given_away_while_the_tpms_commands_are_not_known(link: Link) -> None:
    rm, space = ResourceManager(Absent(link, 4)), Space()
    assert rc(rm.execute(space, raw.create_primary())) == RC.TPM_RC_RETRY
    assert left_in(link) == 0
    assert handle_of(rm.execute(space, raw.create_primary())) >> 16 == 0x80FF
    rm.leave(space)


def test_a_list_of_handles_says_whether_there_are_more(link: Link) -> None:
    rm, space = ResourceManager(link), Space()
    for _ in range(2):
        handle_of(rm.execute(space, raw.create_primary()))
    for count, more in ((1, 1), (2, 0), (9, 0)):
        answer = rm.execute(space, tpm.get_capability(tpm.TPM_CAP_HANDLES, TRANSIENT, count))
        assert (answer[10], int.from_bytes(answer[15:19], "big")) == (more, min(count, 2))
    rm.leave(space)
