"""Linked attestation between a guest, its manager and two verifiers that share no code: what is good, and what not."""

from __future__ import annotations

import base64
import datetime
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from guest_frontend.link import Link
from manager_vm.errors import EvidenceError
from manager_vm.trust import linked
from manager_vm.trust.linked import Demand
from manager_vm.trust.signing import VerifyKey
from manager_vm.wire import tpm
from manager_vm.wire.quote import QuoteBegin, QuoteRefused, Refusal
from tests import event_logs, independent_verifier
from tests.integration.conftest import Make
from tests.integration.harness import ROOT, Manager, Refused, environment, processes, until
from tests.integration.test_provision import Site
from tests.software_platform import NOW, SoftwarePlatform

NONCE, OTHER_NONCE = "5a" * 32, "a5" * 32
AK = "0x8101a001"
Bundle = dict[str, Any]


def ask(manager: Manager, name: str, *options: str, nonce: str = NONCE) -> subprocess.CompletedProcess[str]:
    """``guest_frontend quote`` through the channel of a vTPM."""
    return manager.frontend("quote", manager.channel(name), "--nonce", nonce, *options)


def evidence(manager: Manager, name: str, *options: str, nonce: str = NONCE) -> Bundle:
    """The bundle; the manager must vouch."""
    done = ask(manager, name, *options, nonce=nonce)
    assert done.returncode == 0, done.stderr
    told: Bundle = json.loads(done.stdout)
    return told


def public(manager: Manager) -> Path:
    """The authority's public key."""
    return manager.authority / "authority.pub"


def demand(manager: Manager, nonce: str = NONCE) -> Demand:
    """Of somebody who knows nothing but the authority."""
    return Demand(VerifyKey.load(public(manager)), bytes.fromhex(nonce), datetime.datetime.now(datetime.UTC))


def first_finds(told: Bundle, wanted: Demand) -> str:
    """What the product's verifier finds wrong, "" if nothing."""
    try:
        list(linked.verify(json.dumps(told).encode(), wanted))
    except EvidenceError as error:
        return str(error)
    return ""


def second_finds(told: Bundle, wanted: Demand) -> str:
    """What the other one finds wrong, "" if nothing."""
    key = serialization.load_pem_public_key(wanted.authority.pem)
    try:
        independent_verifier.verify(told, key, wanted.nonce, dict(wanted.expected) if wanted.expected else None)
    except (ValueError, LookupError, TypeError, AttributeError, InvalidSignature) as error:
        return repr(error)
    return ""


def both_find(told: Bundle, wanted: Demand) -> str:
    """The verdict of both, which must agree; what the first one says."""
    first, second = first_finds(told, wanted), second_finds(told, wanted)
    assert bool(first) == bool(second), (first, second)
    return first


@pytest.fixture
def two(manager: Manager) -> Manager:
    """vTPMs "a" and "b"."""
    manager.add("a", "b")
    return manager


# -- what is good ---------------------------------------------------------------------------------------------


def test_a_guests_quote_is_vouched_for_and_both_verifiers_find_it_good(two: Manager, tmp_path: Path) -> None:
    guest = two.guest("a")
    value = guest.extend(7)
    file, ca = tmp_path / "b.json", tmp_path / "ca.pem"
    assert ask(two, "a", "--out", str(file), "--pcrs", "sha256:0-10,16+sha1:7").returncode == 0
    told = json.loads(file.read_text())
    assert base64.b64decode(told["vtpm"]["pcrs"]["sha256"]["7"]).hex() == value
    assert both_find(told, demand(two)) == ""
    two.ctl("ek-cert", "a", "--ca", "--out", str(ca))
    options = ("--authority", str(public(two)), "--nonce", NONCE)
    said = two.ctl("verify", str(file), *options, "--ek-ca", str(ca))
    assert said["verified"] and "trusted CA" in said["proven"][2] and "event log: there is none" in said["proven"][-2]
    argv = [sys.executable, str(ROOT / "tests/independent_verifier.py"), str(file), str(public(two)), NONCE]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "good\n"), done.stderr
    pcrs = tmp_path / "pcrs.json"
    image = {str(pcr): "00" * 32 for pcr in (4, 9, 11, 12, 13)}
    pcrs.write_text(json.dumps({"bank": "sha256", "pcrs": image}))
    assert two.ctl("verify", str(file), *options, "--expect", str(pcrs))["verified"]
    assert subprocess.run([*argv, str(pcrs)], capture_output=True).returncode == 0
    pcrs.write_text(json.dumps({"bank": "sha256", "pcrs": {**image, "4": "11" * 32}}))
    failed = two.vtpmctl("verify", str(file), *options, "--expect", str(pcrs))
    assert (failed.returncode, json.loads(failed.stdout)["not_proven"]) == (
        6,
        "the platform's PCR 4 is not that of the expected image",
    )
    assert subprocess.run([*argv, str(pcrs)], capture_output=True).returncode == 1


def test_an_operators_evidence_and_that_for_third_parties_are_good(two: Manager) -> None:
    operators = json.loads(two.vtpmctl("quote", "b", "--nonce", NONCE).stdout)
    assert operators["kind"] == "platform" and both_find(operators, demand(two)) == ""
    third = evidence(two, "a", "--third-party")
    assert both_find(third, demand(two)) == ""
    shared = set(operators["platform"].values() if False else [operators["platform"]["statement"]])
    assert not any(each in json.dumps(third) for each in (*shared, operators["vtpm"]["ek_ca"]))


def test_tpm2_checkquote_agrees_about_the_guests_quote(two: Manager) -> None:
    told = evidence(two, "a")
    files = two.guest("a").files
    for name in ("quote", "signature"):
        (files / name).write_bytes(base64.b64decode(told["vtpm"][name]))
    guest = two.guest("a")
    guest.run("tpm2_readpublic", "-c", AK, "-f", "pem", "-o", "ak.pem")
    guest.run("tpm2_checkquote", "-u", "ak.pem", "-m", "quote", "-s", "signature", "-q", NONCE)


def test_a_restart_of_the_manager_changes_neither_ak_nor_what_is_proven(two: Manager) -> None:
    before = evidence(two, "a")
    two.stop()
    two.start()
    after = evidence(two, "a")
    assert before["vtpm"]["ak"] == after["vtpm"]["ak"] and both_find(after, demand(two)) == ""


# -- what is not ----------------------------------------------------------------------------------------------

_WHOLE = 512  # bytes: every one of a part up to this size is changed, of a larger one each _STRIDE-th
_STRIDE, _SECOND_STRIDE = 5, 23  # the second verifier runs tpm2_checkquote: it is asked about fewer


def parts(told: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a bundle base64 stands."""
    for key, value in told.items() if isinstance(told, dict) else enumerate(told):
        if isinstance(value, dict | list):
            yield from parts(value, (*path, key))
        elif isinstance(value, str) and key != "kind":
            yield (*path, key)


def changed(told: Bundle, path: tuple[Any, ...], at: int) -> Bundle:
    """A copy in which one byte of one part is another."""
    copy: Bundle = json.loads(json.dumps(told))
    *inner, last = path
    place: Any = copy
    for key in inner:
        place = place[key]
    data = bytearray(base64.b64decode(place[last]))
    data[at] ^= 1 << at % 8
    place[last] = base64.b64encode(data).decode()
    return copy


def test_no_byte_of_any_part_can_be_changed(two: Manager) -> None:
    told, wanted = evidence(two, "a"), demand(two)
    tried = 0
    for path in parts(told):
        place: Any = told
        for key in path:
            place = place[key]
        size = len(base64.b64decode(place))
        for at in range(0, size, 1 if size <= _WHOLE else _STRIDE):
            assert first_finds(changed(told, path, at), wanted), (path, at)
            tried += 1
        for at in range(0, size, _SECOND_STRIDE):
            assert second_finds(changed(told, path, at), wanted), (path, at)
    assert tried > 2000


def test_another_nonce_is_refused(two: Manager) -> None:
    old = evidence(two, "a", nonce=OTHER_NONCE)
    assert "the nonce is another one" in both_find(old, demand(two))
    old["nonce"] = base64.b64encode(bytes.fromhex(NONCE)).decode()
    assert "does not carry the nonce" in both_find(old, demand(two))


@contextmanager
def neighbour(manager: Manager) -> Iterator[Manager]:
    """Another manager, with another hardware TPM, of the same authority."""
    directory = manager.directory.parent / "n"
    directory.mkdir(mode=0o711)
    other = Manager(directory).start()
    try:
        yield other
    finally:
        other.stop()


def test_parts_of_two_platforms_of_one_authority_do_not_fit(two: Manager) -> None:
    here = evidence(two, "a")
    with neighbour(two) as other:
        other.add("a")
        there = evidence(other, "a")
    assert both_find(there, demand(two)) == ""  # by itself it is good
    for part in ("vtpm", "voucher", "platform"):
        assert both_find({**here, part: there[part]}, demand(two)), part
    assert "the platform's quote" in both_find({**here, "platform": there["platform"]}, demand(two))


def test_an_ak_that_is_not_in_the_eks_vtpm_is_refused_by_the_manager_and_by_verifiers(two: Manager) -> None:
    here, there = evidence(two, "a"), evidence(two, "b")
    vtpm = {**here["vtpm"], **{name: there["vtpm"][name] for name in ("ak", "quote", "signature", "pcrs")}}
    assert "the voucher is not for this" in both_find({**here, "vtpm": vtpm}, demand(two))
    quote, signature = (base64.b64decode(there["vtpm"][name]) for name in ("quote", "signature"))
    question = QuoteBegin(1, int(AK, 16), bytes.fromhex(NONCE), quote, signature)
    assert asked(two, "a", question) is Refusal.NOT_ITS_QUOTE  # a has an AK of its own there
    two.guest("a").run("tpm2_evictcontrol", "-C", "o", "-c", AK)
    assert asked(two, "a", question) is Refusal.NO_KEY
    assert asked(two, "b", question) is None


def asked(manager: Manager, name: str, question: QuoteBegin) -> Refusal | None:
    """Why the manager refuses, None if it vouches."""
    link = manager.link(name)
    try:
        outcome = outcome_of(link, question)
    finally:
        link.close()
    return outcome.reason if isinstance(outcome, QuoteRefused) else None


def outcome_of(link: Link, question: QuoteBegin) -> bytes | QuoteRefused:
    """Ask and wait."""
    link.ask(question)
    while not (found := link.outcomes()):
        link.wait()
        link.step()
    return found[0]


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ("fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign", "the AK lacks RESTRICTED"),
        ("sensitivedataorigin|userwithauth|sign", "the AK lacks FIXED_TPM"),
    ],
)
def test_a_key_that_signs_anything_or_can_leave_its_tpm_is_refused(two: Manager, attributes: str, said: str) -> None:
    guest = two.guest("a")
    guest.run("tpm2_createprimary", "-C", "o", "-c", "primary")
    create = ("tpm2_create", "-C", "primary", "-G", "ecc256:ecdsa-sha256", "-u", "pub", "-r", "priv", "-a", attributes)
    guest.run(*create)
    guest.run("tpm2_load", "-C", "primary", "-u", "pub", "-r", "priv", "-c", "key")
    guest.run("tpm2_evictcontrol", "-C", "o", "-c", "key", "0x81000042")
    done = ask(two, "a", "--ak", "0x81000042")
    assert done.returncode == 6 and said in done.stderr, done.stderr


@pytest.mark.parametrize("kind", ["rsa", "ecc"])
def test_an_ak_that_tpm2_tools_made_is_as_good(two: Manager, kind: str) -> None:
    guest = two.guest("a")
    guest.run("tpm2_createek", "-G", "ecc", "-c", "ek")
    scheme = "rsassa" if kind == "rsa" else "ecdsa"
    guest.run("tpm2_createak", "-C", "ek", "-G", kind, "-g", "sha256", "-s", scheme, "-c", "ak")
    guest.run("tpm2_evictcontrol", "-C", "o", "-c", "ak", "0x81010009")
    assert both_find(evidence(two, "a", "--ak", "0x81010009"), demand(two)) == ""


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--nonce", "5a"), 3, "--nonce takes 16 to 64 bytes"),
        (("--nonce", NONCE, "--pcrs", "sha256:24"), 3, "PCRs 0 to 23"),
        (("--nonce", NONCE, "--pcrs", "sha3:1"), 3, "banks sha1"),
        (("--nonce", NONCE, "--ak", "0x81000055"), 3, "refuses to quote"),
        (("--nonce", NONCE, "--ak", "x"), 3, "is no handle"),
    ],
)
def test_a_mistake_of_a_guest_is_named(two: Manager, options: tuple[str, ...], code: int, said: str) -> None:
    done = two.frontend("quote", two.channel("a"), *options)
    assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (code, True, False), done.stderr


def test_a_platform_that_nobody_has_enrolled_vouches_for_nothing(make: Make, tmp_path: Path) -> None:
    site = Site(make, tmp_path).start()
    site.ctl("create", "a")
    site.ctl("attach", "a")
    done = ask(site.manager, "a")
    assert done.returncode == 6 and "has to have it enrolled" in done.stderr
    with pytest.raises(Refused, match="not enrolled"):
        site.ctl("quote", "a", "--nonce", NONCE)


# -- what a guest cannot do to others -------------------------------------------------------------------------


@contextmanager
def hardware_tpm_hangs(manager: Manager) -> Iterator[None]:
    """Its process is stopped meanwhile."""
    (pid,) = [pid for pid, line in processes(f"dir={manager.directory}/hwtpm").items() if line.startswith("swtpm ")]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def question_of(told: Bundle) -> QuoteBegin:
    """What led to this bundle."""
    quote, signature = (base64.b64decode(told["vtpm"][name]) for name in ("quote", "signature"))
    return QuoteBegin(int.from_bytes(os.urandom(7)), int(AK, 16), bytes.fromhex(NONCE), quote, signature)


def test_while_the_hardware_tpm_hangs_commands_and_heartbeat_go_on(two: Manager) -> None:
    question = question_of(evidence(two, "a"))
    link = two.link("a")
    try:
        with hardware_tpm_hangs(two):
            link.ask(question)
            for _ in range(30):
                assert tpm.response_code(link.execute(tpm.get_random(8))) == 0
                until(lambda: not link.step(), what="a step")
            assert two.guest("b").run("tpm2_getrandom", "8")
            assert link.asking and two.show("a")["live"]
        found = until(lambda: (link.step(), link.outcomes())[1], 30, "evidence")
        assert isinstance(found[0], bytes)
    finally:
        link.close()


def test_one_who_asks_and_leaves_does_not_keep_the_next_one_from_asking(two: Manager) -> None:
    question = question_of(evidence(two, "a"))
    with hardware_tpm_hangs(two):
        link = two.link("a")
        link.ask(question)
        until(lambda: (link.step(), tpm.response_code(link.execute(tpm.get_random(8))) == 0)[1])
        assert asked_again(link, question) is Refusal.BUSY
    until(lambda: asked(two, "a", question_of(evidence_of(question))) is not Refusal.BUSY, 20)
    two.ctl("detach", "a")
    two.ctl("attach", "a")
    until(lambda: asked(two, "a", question_of(evidence_of(question))) is None, 30, "evidence on another channel")


def asked_again(link: Link, question: QuoteBegin) -> Refusal:
    """By another session, while the question of the one before is open."""
    link.close()
    other = Link(str(link._address), patience=10.0)
    other.open(5.0)
    try:
        outcome = outcome_of(other, question)
    finally:
        other.close()
    assert isinstance(outcome, QuoteRefused)
    return outcome.reason


def evidence_of(question: QuoteBegin) -> Bundle:
    """As much of a bundle as ``question_of`` needs."""
    fields = {"quote": question.quote, "signature": question.signature}
    return {"vtpm": {name: base64.b64encode(value).decode() for name, value in fields.items()}}


def test_a_guest_that_asks_too_often_is_told_to_wait_and_others_are_not(two: Manager) -> None:
    question = question_of(evidence(two, "a"))
    link = two.link("a")
    try:
        outcomes = [outcome_of(link, question_of(evidence_of(question))) for _ in range(6)]
    finally:
        link.close()
    late = [each.reason for each in outcomes if isinstance(each, QuoteRefused)]
    assert late and set(late) == {Refusal.LATER}
    done = ask(two, "a")
    assert done.returncode == 12 and "again in" in done.stderr
    assert both_find(evidence(two, "b"), demand(two)) == ""


# -- event logs -----------------------------------------------------------------------------------------------


def test_tpm2_eventlog_and_both_verifiers_read_an_event_log_alike(tmp_path: Path) -> None:
    log = event_logs.log(event_logs.BOOT)
    (tmp_path / "log").write_bytes(log)
    said = subprocess.run(["tpm2_eventlog", str(tmp_path / "log")], capture_output=True, text=True, check=True).stdout
    values = event_logs.values(event_logs.BOOT)
    replayed = independent_verifier.replay(log)
    for pcr in (0, 4, 9, 11):
        assert values[pcr].hex() in said.partition("pcrs:")[2] and replayed[pcr] == values[pcr], pcr


def test_both_verifiers_agree_about_a_bundle_with_an_event_log(monkeypatch: pytest.MonkeyPatch) -> None:
    from manager_vm.trust import bundle, pcrs

    values = event_logs.values(event_logs.BOOT)
    image = {pcr: values[pcr] for pcr in pcrs.BOUND_PCRS} | {11: pcrs.after_phases(values[11])}
    monkeypatch.setattr(independent_verifier, "NOW", NOW)
    for events in (event_logs.BOOT, event_logs.BOOT[:-1], event_logs.BOOT[:5] + event_logs.BOOT[6:]):
        host = SoftwarePlatform(image=image, log=event_logs.log(events))
        told = json.loads(bundle.pack(host.linked()))
        assert bool(both_find(told, host.demand())) is (events != event_logs.BOOT)


def test_the_front_ends_environment_is_that_of_a_guest(two: Manager) -> None:
    assert environment(two.directory)["XDG_RUNTIME_DIR"] == str(two.directory)
