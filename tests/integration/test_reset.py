"""Reset semantics: PCRs become zero by a reset that the host side reports (or --power-on), and by nothing else."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

from manager_vm.ctl.client import Client
from manager_vm.wire import tpm
from manager_vm.wire.channel import Command, Message, Ping
from manager_vm.wire.tpm import RC
from tests.integration import raw
from tests.integration.harness import Guest, Manager, Refused, until

ZERO = "00" * 32
KEY = "0x81000001"


def kill_swtpm(manager: Manager, name: str) -> None:
    os.kill(manager.swtpm_pid(name), signal.SIGKILL)
    until(lambda: manager.show(name)["state"] == "failed", what=f"{name} is failed")


@pytest.fixture
def failed(manager: Manager) -> Manager:
    """vTPM "a" had PCR 7 extended, then its swtpm was killed."""
    manager.add("a")
    assert manager.guest("a").extend(7) != ZERO
    kill_swtpm(manager, "a")
    return manager


def test_a_killed_swtpm_answers_failure_until_a_reported_boot(failed: Manager) -> None:
    guest = failed.guest("a")
    for _ in range(2):
        assert "0x101" in guest.fails("tpm2_pcrread", "sha256:7")
        assert "0x101" in guest.fails("tpm2_pcrextend", "7:sha256=" + "22" * 32)
    assert "died" in failed.show("a")["reason"]
    failed.ctl("boot", "a", "2")
    assert guest.pcr(7) == ZERO
    assert failed.show("a")["state"] == "running"
    assert failed.show("a")["reason"] == ""


def test_neither_reattaching_nor_a_restart_of_the_manager_resets_a_killed_vtpm(failed: Manager) -> None:
    failed.ctl("detach", "a")
    failed.ctl("attach", "a")
    assert "0x101" in failed.guest("a").fails("tpm2_pcrread", "sha256:7")
    failed.stop()
    failed.start()
    assert failed.show("a")["state"] == "failed"
    assert "0x101" in failed.guest("a").fails("tpm2_pcrread", "sha256:7")
    with pytest.raises(Refused, match="reset the guest") as refused:
        failed.ctl("start", "a")
    assert refused.value.code == 13


def test_power_on_revives_a_killed_vtpm_but_not_under_a_live_guest(failed: Manager) -> None:
    link = failed.link("a")
    try:
        assert raw.rc(link.execute(tpm.get_random(8))) == RC.TPM_RC_FAILURE
        with pytest.raises(Refused, match="a guest is using") as refused:
            failed.ctl("start", "a", "--power-on")
        assert refused.value.code == 12
        assert failed.show("a")["state"] == "failed"
    finally:
        link.close()
    until(lambda: not failed.show("a")["live"], what="the guest has left")
    assert failed.ctl("start", "a", "--power-on")["state"] == "running"
    assert failed.guest("a").pcr(7) == ZERO


def test_each_boot_number_is_applied_once_and_never_backwards(manager: Manager) -> None:
    manager.add("a")
    guest = manager.guest("a")
    extended = guest.extend(7)
    manager.ctl("boot", "a", "1")
    assert guest.pcr(7) == extended
    manager.ctl("boot", "a", "5")
    assert guest.pcr(7) == ZERO
    extended = guest.extend(7)
    manager.ctl("boot", "a", "5")
    assert guest.pcr(7) == extended
    with pytest.raises(Refused, match=r"boot 4 .* is over") as refused:
        manager.ctl("boot", "a", "4")
    assert refused.value.code == 13
    assert guest.pcr(7) == extended


def test_what_an_earlier_boot_left_in_its_channel_is_never_executed(manager: Manager) -> None:
    manager.add("a")
    with Client.connect(manager.directory / "host.sock") as host:
        for boot in range(2, 12):
            with raw.Session(manager.channel("a")) as session:
                seq = session.hello().next_seq
                pings: list[Message] = [Ping(1)] * 1300
                session.write_what_fits([*pings, Command(seq, 0, raw.pcr_extend(7))])
                host.call("boot", name="a", number=boot)
                time.sleep(0.1)
            with raw.Session(manager.channel("a"), session.id) as session:
                welcome = session.hello()
                assert not welcome.resumed and abs(welcome.next_seq - seq) > 1 << 20
            assert manager.guest("a").pcr(7) == ZERO, boot


def test_the_first_seq_of_a_boot_is_not_known_before(manager: Manager) -> None:
    manager.add("a")
    seen = set()
    for boot in range(2, 8):
        manager.ctl("boot", "a", str(boot))
        with raw.Session(manager.channel("a")) as session:
            seen.add(session.hello().next_seq >> 32)
    assert len(seen) == 6


def test_a_reset_keeps_permanent_state_and_takes_volatile_state(manager: Manager) -> None:
    manager.add("a")
    guest = manager.guest("a")
    guest.define("0x1500001")
    guest.write("0x1500001", b"k" * 32)
    with_link = manager.link("a")
    object_ = raw.handle_of(with_link.execute(raw.create_primary()))
    manager.ctl("boot", "a", "2")
    with_link.close()
    with_link = manager.link("a")
    assert raw.rc(with_link.execute(tpm.read_public(object_))) == RC.TPM_RC_REFERENCE_H0
    with_link.close()
    assert guest.read("0x1500001") == b"k" * 32


def test_the_lockout_counter_stays_zero_where_it_can_count(manager: Manager) -> None:
    """So that the zero of the test below means something: a wrong password does count."""
    manager.add("a")
    make_protected_key(manager.guest("a"))
    assert "0x98e" in manager.guest("a").fails("tpm2_sign", "-c", KEY, "-p", "wrong", "-o", "s", "message")
    assert manager.ctl("info", "a")["lockout_counter"] == 1


@pytest.mark.parametrize("rounds", [8, pytest.param(50, marks=pytest.mark.full)])
def test_the_lockout_counter_is_zero_after_stops_and_starts(manager: Manager, rounds: int) -> None:
    manager.add("a")
    guest = manager.guest("a")
    make_protected_key(guest)
    for number in range(rounds):
        guest.run("tpm2_sign", "-c", KEY, "-p", "right", "-o", "s", "message")
        match number % 4:
            case 0 | 1:
                manager.ctl("stop", "a")
                manager.ctl("start", "a")
            case 2:
                manager.ctl("boot", "a", str(2 + number))
            case 3:
                manager.stop()
                manager.start()
    guest.run("tpm2_sign", "-c", KEY, "-p", "right", "-o", "s", "message")
    info = manager.ctl("info", "a")
    assert (info["lockout_counter"], info["in_lockout"]) == (0, False)


def make_protected_key(guest: Guest) -> None:
    """A persistent signing key with a password, under dictionary-attack protection."""
    (guest.files / "message").write_bytes(b"m")
    guest.run("tpm2_createprimary", "-C", "o", "-G", "ecc", "-c", "p.ctx")
    guest.run("tpm2_create", "-C", "p.ctx", "-G", "ecc", "-p", "right", "-u", "k.pub", "-r", "k.priv", "-c", "k.ctx")
    guest.run("tpm2_evictcontrol", "-C", "o", "-c", "k.ctx", KEY)
    attributes = guest.run("tpm2_readpublic", "-c", KEY).decode()
    assert not re.search(r"noda", attributes)
