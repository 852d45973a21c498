"""What a guest sees of its TPM across a move there and back, a park, and a restart of the manager (MIGRATION.md, 10).

One pair of managers serves all tests but the last; each test has a vTPM of its own.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from guest_frontend.link import Link
from manager_vm.wire import tpm
from manager_vm.wire.tpm import RC
from tests.hmac_session import HmacSession, name_of
from tests.integration import raw
from tests.integration.clocks import HostClock, two_managers
from tests.integration.harness import Refused, until
from tests.integration.middle import Middle
from tests.integration.raw import Time
from tests.integration.site import Site, address

HOUR = 3_600_000  # ms
ROUNDING = 20  # ms; each resume cuts several readings to milliseconds
AUTH, SECRET = b"an auth", b"a secret"
AUTH_FAIL, BAD_AUTH = 0x98E, 0x9A2  # TPM_RC_AUTH_FAIL, TPM_RC_BAD_AUTH, session 1
COMMITTED = 7  # which frame of a move
EXPIRED = 0x1E3  # TPM_RC_EXPIRED, parameter 1
HALF_AN_HOUR = 1800  # s, of a ticket
INTERVAL = 4  # s, of a lockout that a test waits for


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Site, HostClock]]:
    with two_managers() as pair:
        yield pair


@pytest.fixture
def site(pair: tuple[Site, HostClock]) -> Iterator[Site]:
    """Manager a runs vTPM "v"; it and b are of one authority."""
    site, _ = pair
    site.a.add("v")
    yield site
    for each in (site.a, site.b):
        if not each.running:
            each.start()
        for row in each.ctl("list"):
            each.ctl("detach", row["name"])
            each.ctl("destroy", row["name"], "--yes")


@pytest.fixture
def host_clock(pair: tuple[Site, HostClock]) -> Iterator[HostClock]:
    """Manager b's."""
    yield pair[1]
    pair[1].set(0)


@pytest.fixture
def guest(site: Site) -> Iterator[Link]:
    """One front end for all the time, at wherever the vTPM is."""
    with closing(Link(f"{site.a.channel('v')},{site.b.channel('v')}", patience=30.0)) as link:
        link.open(5.0)
        yield link


def move_there_and_back(site: Site) -> Iterator[None]:
    site.migrate(site.a, site.b)
    yield
    site.migrate(site.b, site.a)
    yield


def park(site: Site) -> Iterator[None]:
    site.a.ctl("stop", "v")
    site.a.ctl("start", "v")
    yield


def restart(site: Site) -> Iterator[None]:
    site.a.stop()
    site.a.start()
    yield


@pytest.fixture(params=[move_there_and_back, park, restart], ids=lambda each: each.__name__)
def interruptions(request: pytest.FixtureRequest, site: Site) -> Iterator[None]:
    """Each step of this iterator is one interruption of what the guest does."""
    interrupt: Callable[[Site], Iterator[None]] = request.param
    return interrupt(site)


def ask(guest: Link, command: bytes) -> bytes:
    """Execute; a use of what is under dictionary-attack protection may be put off once."""
    response = guest.execute(command)
    return guest.execute(command) if raw.rc(response) == RC.TPM_RC_RETRY else response


def seal(guest: Link, owner_auth: bytes = b"") -> int:
    return raw.handle_of(ask(guest, raw.seal(SECRET, AUTH, owner_auth)))


def clock(guest: Link) -> Time:
    return Time.of(guest.execute(tpm.read_clock()))


def fail(guest: Link, sealed: int, times: int) -> None:
    assert [raw.rc(ask(guest, raw.unseal(sealed, b"wrong"))) for _ in range(times)] == [AUTH_FAIL] * times


def failures(guest: Link) -> int:
    return raw.property_of(guest.execute(raw.get_property(raw.TPM_PT_LOCKOUT_COUNTER)))


def ticket(guest: Link, seconds: int) -> bytes:
    """What TPM2_PolicySecret says, with a ticket."""
    session = guest.execute(raw.start_policy_session())
    return guest.execute(raw.policy_secret(raw.handle_of(session), session[16:], seconds))


def present(guest: Link, given: bytes) -> int:
    """The response code to a ticket in a new session."""
    return raw.rc(guest.execute(raw.policy_ticket(raw.handle_of(guest.execute(raw.start_policy_session())), given)))


# -- time ---------------------------------------------------------------------------------------------------------


def test_no_reset_is_counted_and_clock_and_time_go_on_with_the_wall_clock(
    guest: Link, interruptions: Iterator[None]
) -> None:
    began, first, read = time.time(), clock(guest), time.time()
    assert first.safe == 1
    for _ in interruptions:
        least, now, most = time.time() - read, clock(guest), time.time() - began
        assert now[2:] == first[2:]
        assert now.clock - first.clock == now.time - first.time
        assert least * 1000 - ROUNDING <= now.clock - first.clock <= most * 1000 + ROUNDING


@pytest.mark.parametrize("shift", [3600, -3600], ids=["ahead", "behind"])
def test_clock_never_goes_back_and_leaps_where_the_host_clock_is_ahead(
    site: Site, guest: Link, host_clock: HostClock, shift: int
) -> None:
    host_clock.set(shift)
    began, readings = time.time(), [clock(guest)]
    for _ in move_there_and_back(site):
        readings.append(clock(guest))
    passed = (time.time() - began) * 1000 + ROUNDING
    there, back = (later.clock - earlier.clock for earlier, later in itertools.pairwise(readings))
    leap, go_on = (there, back) if shift > 0 else (back, there)
    assert HOUR - ROUNDING <= leap <= HOUR + passed
    assert 0 < go_on <= passed
    assert {reading[2:] for reading in readings} == {readings[0][2:]}


@pytest.mark.parametrize("jump", [3600, -3600], ids=["ahead", "behind"])
def test_a_wall_clock_that_jumps_while_a_vtpm_runs_shows_at_its_next_move_at_most(
    site: Site, guest: Link, host_clock: HostClock, jump: int
) -> None:
    host_clock.set(1)
    site.migrate(site.a, site.b)
    began, first = time.time(), clock(guest)
    host_clock.set(1 + jump)
    jumped = clock(guest)
    passed = (time.time() - began) * 1000 + ROUNDING
    assert first.clock <= jumped.clock <= first.clock + passed
    site.migrate(site.b, site.a)
    assert jumped.clock < clock(guest).clock


@pytest.mark.parametrize("shift", [3600, -3600], ids=["longer", "shorter"])
def test_how_long_the_other_host_has_been_up_does_not_show(
    site: Site, guest: Link, host_clock: HostClock, shift: int
) -> None:
    host_clock.set(shift, time.CLOCK_MONOTONIC)
    began, readings = time.time(), [clock(guest)]
    for _ in move_there_and_back(site):
        readings.append(clock(guest))
    assert readings[0].clock < readings[1].clock < readings[2].clock
    assert readings[2].clock - readings[0].clock <= (time.time() - began) * 1000 + ROUNDING


# -- dictionary attacks -------------------------------------------------------------------------------------------


def test_failures_are_counted_on(guest: Link, interruptions: Iterator[None]) -> None:
    sealed = seal(guest)
    assert raw.rc(guest.execute(raw.dictionary_attack_parameters(3, 1000, 1000))) == 0
    fail(guest, sealed, 2)
    for _ in interruptions:
        assert failures(guest) == 2
    fail(guest, sealed, 1)
    assert raw.rc(ask(guest, raw.unseal(sealed, AUTH))) == RC.TPM_RC_LOCKOUT


def test_a_lockout_stays(guest: Link, interruptions: Iterator[None]) -> None:
    sealed = seal(guest)
    assert raw.rc(guest.execute(raw.dictionary_attack_parameters(2, 1000, 1000))) == 0
    fail(guest, sealed, 2)
    for _ in interruptions:
        assert raw.rc(ask(guest, raw.unseal(sealed, AUTH))) == RC.TPM_RC_LOCKOUT and failures(guest) == 2


def test_a_lockout_lasts_as_long_as_without_an_interruption(guest: Link, interruptions: Iterator[None]) -> None:
    sealed = seal(guest)
    assert raw.rc(guest.execute(raw.dictionary_attack_parameters(2, INTERVAL, INTERVAL))) == 0
    fail(guest, sealed, 1)
    earliest = time.monotonic()
    fail(guest, sealed, 1)
    for _ in interruptions:
        locked = raw.rc(ask(guest, raw.unseal(sealed, AUTH))) == RC.TPM_RC_LOCKOUT
        assert locked or time.monotonic() - earliest >= INTERVAL - ROUNDING / 1000
    until(lambda: failures(guest) < 2, what="the lockout is over")
    assert time.monotonic() - earliest >= INTERVAL - ROUNDING / 1000
    assert raw.unsealed(ask(guest, raw.unseal(sealed, AUTH))) == SECRET


def test_an_hour_that_the_clock_leaps_ends_lockouts_and_tickets(site: Site, guest: Link, host_clock: HostClock) -> None:
    """As documented: to the TPM that hour has passed."""
    sealed, given = seal(guest), ticket(guest, HALF_AN_HOUR)
    assert raw.rc(guest.execute(raw.dictionary_attack_parameters(2, 1000, 1000))) == 0
    fail(guest, sealed, 2)
    host_clock.set(3600)
    site.migrate(site.a, site.b)
    assert failures(guest) == 0 and raw.unsealed(ask(guest, raw.unseal(sealed, AUTH))) == SECRET
    assert present(guest, given) == EXPIRED


# -- auth values, PCRs, contexts, sessions ------------------------------------------------------------------------


def test_auth_values_of_owner_and_object_are_needed_and_accepted(guest: Link, interruptions: Iterator[None]) -> None:
    assert raw.rc(guest.execute(tpm.hierarchy_change_auth(tpm.TPM_RH_OWNER, AUTH))) == 0
    sealed = seal(guest, AUTH)
    for _ in interruptions:
        for wrong in (b"", b"wrong"):
            assert raw.rc(guest.execute(raw.seal(SECRET, AUTH, wrong))) == BAD_AUTH
        assert raw.rc(ask(guest, raw.unseal(sealed, b""))) == AUTH_FAIL
        assert raw.unsealed(ask(guest, raw.unseal(sealed, AUTH))) == SECRET
        assert raw.rc(guest.execute(tpm.flush_context(seal(guest, AUTH)))) == 0


def test_the_pcr_update_counter_counts_on(guest: Link, interruptions: Iterator[None]) -> None:
    assert raw.rc(guest.execute(raw.pcr_extend(7))) == 0
    before = guest.execute(raw.pcr_read(7))
    for _ in interruptions:
        assert guest.execute(raw.pcr_read(7)) == before
    assert raw.rc(guest.execute(raw.pcr_extend(7))) == 0
    assert raw.pcr_update_counter(guest.execute(raw.pcr_read(7))) == raw.pcr_update_counter(before) + 1


def test_saved_contexts_of_an_object_and_of_a_session_load(guest: Link, interruptions: Iterator[None]) -> None:
    sealed, session = seal(guest), raw.handle_of(guest.execute(raw.start_policy_session()))
    assert raw.rc(guest.execute(raw.policy_command_code(session))) == 0
    digest = guest.execute(raw.policy_get_digest(session))
    object_, saved = (guest.execute(raw.context_save(handle)) for handle in (sealed, session))
    assert raw.rc(guest.execute(tpm.flush_context(sealed))) == 0
    for _ in interruptions:
        loaded = raw.handle_of(guest.execute(raw.context_load(object_)))
        assert raw.unsealed(ask(guest, raw.unseal(loaded, AUTH))) == SECRET
        assert raw.handle_of(guest.execute(raw.context_load(saved))) == session
        assert guest.execute(raw.policy_get_digest(session)) == digest
        assert raw.rc(guest.execute(raw.context_load(saved))) != 0
        saved = guest.execute(raw.context_save(session))


def test_a_ticket_that_expires_later_is_good(guest: Link, interruptions: Iterator[None]) -> None:
    given = ticket(guest, HALF_AN_HOUR)
    for _ in interruptions:
        assert present(guest, given) == 0


def test_an_hmac_session_goes_on_with_its_nonces(guest: Link, interruptions: Iterator[None]) -> None:
    sealed, session = seal(guest), HmacSession(guest)
    name = name_of(guest.execute(tpm.read_public(sealed)))

    def unseal() -> bytes:
        response = session.execute(raw.TPM_CC_UNSEAL, (sealed,), (name,), auth=AUTH)
        again = raw.rc(response) == RC.TPM_RC_RETRY  # the first use of what is under dictionary-attack protection
        return session.execute(raw.TPM_CC_UNSEAL, (sealed,), (name,), auth=AUTH) if again else response

    assert raw.unsealed(unseal()) == SECRET
    for _ in interruptions:
        assert raw.unsealed(unseal()) == SECRET


def test_localities_above_zero_stay_closed(guest: Link, interruptions: Iterator[None]) -> None:
    def tries() -> list[int]:
        higher = raw.rc(guest.execute(tpm.get_random(8), locality=3))
        return [higher, *(raw.rc(guest.execute(raw.pcr_reset(pcr))) for pcr in (16, 20, 23))]

    assert tries() == [RC.TPM_RC_LOCALITY, 0, RC.TPM_RC_LOCALITY, 0]
    for _ in interruptions:
        assert tries() == [RC.TPM_RC_LOCALITY, 0, RC.TPM_RC_LOCALITY, 0]


def test_two_that_a_declaration_of_death_left_do_not_give_the_same_random_numbers() -> None:
    """The destination lives, and only its last word was lost: both go on from the same state."""
    lost: list[int] = []

    def cut(number: int, source: bool, frame: bytes) -> bytes | None:
        lost.extend([number] * (number == COMMITTED))
        return None if lost else frame

    with two_managers() as (site, _):
        site.a.add("v")
        with closing(site.a.link("v")) as link:
            assert raw.rc(link.execute(raw.pcr_extend(7))) == 0
        with closing(Middle(address(site.b), cut)) as middle, pytest.raises(Refused):
            site.migrate(site.a, site.b, at=middle.address)
        site.a.ctl("declare-dead", "v", "--yes")
        numbers = []
        for each in (site.a, site.b):
            with closing(each.link("v")) as link:
                numbers += [link.execute(tpm.get_random(16)), link.execute(raw.pcr_read(7))]
        assert numbers[0] != numbers[2] and numbers[1] == numbers[3]
