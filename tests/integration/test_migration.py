"""Two ``dev`` managers: a vTPM moves once, whoever is in between and whatever dies (MIGRATION.md; R1 to R12)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from guest_frontend.link import Link
from manager_vm.trust import evidence, order
from manager_vm.trust.authority import AuthorityDirectory
from manager_vm.trust.register import Register
from manager_vm.trust.signing import SigningKey
from manager_vm.wire import framing, migration
from tests.integration import crashing, raw
from tests.integration.conftest import Make
from tests.integration.harness import Manager, Refused, until
from tests.integration.middle import Between, Middle
from tests.integration.raw import Session
from tests.integration.site import Site, address
from tests.integration.test_audit import entries

INDEX, COUNTER, PERSISTENT = "0x1500016", "0x1500017", "0x81010001"
TRUST, MOVE, REFUSED, ABORTED, UNCONFIRMED = 6, 20, 21, 22, 23
FRAMES = 8  # OFFER, ACCEPT, CONFIRM, READY, STATE, PREPARED, COMMIT, COMMITTED: the state fits one part


@pytest.fixture
def site(make: Make) -> Iterator[Site]:
    """Manager a has vTPM "v", which runs; it and b are enrolled by the authority beside both."""
    one = make(fresh=True)
    other = one.directory.parent / "n"
    other.mkdir(mode=0o711)
    two = Manager(other)
    try:
        one.start()
        two.start()
        one.add("v")
        yield Site(one, two)
    finally:
        if two.running:
            two.stop()


RUNNABLE = {"running", "parked", "off", "failed"}


def settled(site: Site, uuid: str) -> tuple[Manager, str]:
    """Where the vTPM is, once nothing is open any more: at one manager, and it can run there."""

    def one_place() -> tuple[Manager, str] | None:
        for each in (site.a, site.b):
            if not each.running:
                each.start()
        found = site.where(uuid)
        assert sum(state in RUNNABLE for _, state in found) <= 1, found
        return found[0] if len(found) == 1 and found[0][1] in RUNNABLE else None

    try:
        where: tuple[Manager, str] = until(one_place, 20.0, "the vTPM is at one manager")
    except AssertionError:
        print(site.a.log(), "-----", site.b.log(), site.a.ctl("migrations"), site.b.ctl("migrations"))
        raise
    return where


def furnish(manager: Manager) -> None:
    guest = manager.guest("v")
    guest.define(INDEX)
    guest.write(INDEX, bytes(range(32)))
    guest.run("tpm2_nvdefine", COUNTER, "-C", "o", "-a", "nt=counter|ownerread|ownerwrite|authread|authwrite")
    guest.run("tpm2_nvincrement", COUNTER, "-C", "o")
    guest.run("tpm2_createprimary", "-C", "o", "-c", "primary.ctx")
    guest.run("tpm2_evictcontrol", "-C", "o", "-c", "primary.ctx", PERSISTENT)


def test_a_vtpm_moves_there_and_back_with_all_that_it_has(site: Site) -> None:
    furnish(site.a)
    before = site.a.show("v")
    extended = site.a.guest("v").extend(16)
    link = site.a.link("v")
    session = raw.handle_of(link.execute(raw.start_policy_session()))
    digest = link.execute(raw.policy_command_code(session)) and link.execute(raw.policy_get_digest(session))
    link.close()
    names = {kind: site.a.ctl("ek-cert", "v", "--key", kind)["pem"] for kind in ("rsa2048", "ecc-p256")}
    ca = site.a.ctl("ek-cert", "v", "--ca")["pem"]

    moved = site.migrate(site.a, site.b)
    assert (moved["state"], moved["generation"]) == ("done", 2)
    assert site.a.ctl("list") == []
    shown = site.b.show("v")
    assert (shown["state"], shown["generation"], shown["boot"]) == ("running", 2, before["boot"])
    assert (shown["uuid"], shown["ek_names"]) == (before["uuid"], before["ek_names"])
    link = site.b.link("v")
    assert link.execute(raw.policy_get_digest(session)) == digest  # first: tools flush what they did not make
    link.close()
    guest = site.b.guest("v")
    assert guest.pcr(16) == extended and guest.read(INDEX) == bytes(range(32))
    guest.run("tpm2_readpublic", "-c", PERSISTENT)
    assert {kind: site.b.ctl("ek-cert", "v", "--key", kind)["pem"] for kind in names} == names
    assert site.b.ctl("ek-cert", "v", "--ca")["pem"] == ca

    site.migrate(site.b, site.a)
    assert site.b.ctl("list") == [] and site.a.show("v")["generation"] == 3
    assert site.a.guest("v").pcr(16) == extended
    assert [move["direction"] for move in site.a.ctl("migrations")] == ["out", "in"]
    assert not list((site.a.state / "moves").iterdir()) and not list((site.b.state / "runs").iterdir())


@pytest.mark.parametrize("state", ["off", "parked"])
def test_a_vtpm_that_does_not_run_moves_as_it_is(site: Site, state: str) -> None:
    if state == "off":
        site.a.ctl("create", "w")
        name = "w"
    else:
        furnish(site.a)
        site.a.ctl("stop", "v")
        name = "v"
    site.migrate(site.a, site.b, name=name)
    assert site.b.show(name)["state"] == state and name not in [row["name"] for row in site.a.ctl("list")]
    if state == "parked":
        site.b.ctl("start", name)
        assert site.b.guest(name).read(INDEX) == bytes(range(32))


def test_both_sides_keep_receipts_that_the_other_has_signed(site: Site) -> None:
    site.migrate(site.a, site.b)
    (out,), (into,) = site.a.ctl("migrations"), site.b.ctl("migrations")
    for name in ("move", "vtpm", "order", "transcript", "generation"):
        assert out[name] == into[name]
    assert (out["state"], into["state"]) == ("done", "committed") and out["ended"] and into["ended"]
    assert out["receipt"]["received"] == into["receipt"]["sent"]
    word = migration.parse_handover(bytes.fromhex(out["receipt"]["received"]))
    assert word.kind is migration.Kind.COMMITTED
    steps = {event: states(manager, event) for manager, event in ((site.a, "move out"), (site.b, "move in"))}
    assert steps == {"move out": ["offered", "tombstone", "done"], "move in": ["prepared", "committed"]}
    assert not any(each["event"] in ("created", "destroyed") for each in entries(site.b))


def test_a_receipt_of_either_side_proves_the_move_to_whoever_has_the_authoritys_key_alone(site: Site) -> None:
    site.migrate(site.a, site.b)
    one, two = site.platforms.values()
    for manager, named in ((site.a, site.a.ctl("migrations")[0]["move"]), (site.b, "v")):
        path = manager.directory / "v.receipt"
        manager.ctl("receipt", named, "--out", str(path))
        proven = verified(manager, path)
        assert f"move from platform '{one}' to '{two}'" in proven[0]
        signed = {line.split(":")[0] for line in proven if "has signed" in line}
        assert signed == {f"'{one}' has signed COMMIT", f"'{two}' has signed COMMITTED"}
        for name in (one, two):
            assert any(line.startswith(f"platform '{name}': image: the authority approved it") for line in proven)
        data = path.read_bytes()
        for at in range(0, len(data), len(data) // 60):
            path.write_bytes(flip(data, at))
            with pytest.raises(Refused) as refused_:
                verified(manager, path)
            assert refused_.value.code == TRUST
        path.write_bytes(data)
    stranger = site.a.directory / "stranger.pub"
    SigningKey.create().public.store(stranger)
    with pytest.raises(Refused):
        verified(site.a, site.a.directory / "v.receipt", stranger)


def test_a_receipt_outlives_a_restart_and_a_refused_move_leaves_none(site: Site) -> None:
    site.b.ctl("create", "w")
    site.a.ctl("create", "w")
    with pytest.raises(Refused, match="policy"):
        site.migrate(site.a, site.b, name="w")
    site.migrate(site.a, site.b)
    (move,) = site.a.ctl("migrations")
    site.a.stop()
    site.a.start()
    assert [path.name for path in (site.a.state / "receipts").iterdir()] == [move["move"]]
    site.a.ctl("receipt", "v", "--out", str(site.a.directory / "v.receipt"))
    with pytest.raises(Refused, match="no receipt of a move 'w'"):
        site.a.ctl("receipt", "w", "--out", str(site.a.directory / "w.receipt"))


def verified(manager: Manager, path: Path, authority: Path | None = None) -> list[str]:
    key = authority or manager.authority / "authority.pub"
    done = manager.vtpmctl("verify-receipt", str(path), "--authority", str(key))
    said = json.loads(done.stdout)
    if done.returncode:
        raise Refused(done.returncode, "", said["not_proven"])
    proven: list[str] = said["proven"]
    return proven


def states(manager: Manager, event: str) -> list[str]:
    return [entry["state"] for entry in entries(manager) if entry["event"] == event]


def test_a_trial_changes_nothing(site: Site) -> None:
    said = site.a.ctl("migrate", "v", "--to", address(site.b), "--order", str(site.order(site.a, site.b)), "--dry-run")
    assert said["dry_run"]
    assert site.a.show("v")["state"] == "running" and site.b.ctl("list") == []
    assert site.a.ctl("migrations") == site.b.ctl("migrations") == []
    until(lambda: not site.b.swtpms(), what="the process that waited is gone")


def test_all_vtpms_of_a_manager_leave_with_one_verb(site: Site) -> None:
    for number in range(5):
        site.a.ctl("create", f"w{number}")
    outcomes = site.a.ctl("evacuate", "--to", str(site.b.directory), "--parallel", "2")
    assert len(outcomes) == 6 and all(each["moved"] for each in outcomes)
    assert site.a.ctl("list") == [] and len(site.b.ctl("list")) == 6


# -- who may ------------------------------------------------------------------------------------------------------


def refused(site: Site, given: Path, at: str = "") -> Refused:
    with pytest.raises(Refused) as found:
        site.migrate(site.a, site.b, given=given, at=at)
    assert site.a.show("v")["state"] == "running" and site.b.ctl("list") == []
    return found.value


def write(site: Site, data: bytes) -> Path:
    path = site.a.directory / "given.json"
    path.write_bytes(data)
    return path


def test_each_wrong_order_is_refused_by_its_own_rule_and_nothing_is_sent(site: Site) -> None:
    key = SigningKey.load(site.a.authority / "authority.key")
    shown, (one, two) = site.a.show("v"), site.platforms.values()
    right = (shown["uuid"], shown["generation"], one, two)
    stranger = refused(site, write(site, order.give(*right, SigningKey.create())))
    assert stranger.code == MOVE and "the order is not good here" in stranger.text
    for wrong, text in (
        ((right[0], 2, one, two), "generation"),
        ((right[0], 1, two, one), "source"),
        (("0" * 8 + right[0][8:], 1, one, two), "uuid"),
    ):
        assert text in refused(site, write(site, order.give(*wrong, key))).text
    foreign = refused(site, write(site, order.give(*right, key, group="acme")))
    assert "no group 'acme'" in foreign.text
    third = refused(site, write(site, order.give(*right[:3], "rack9", key)))
    assert "is for 'rack9'" in third.text or "rack9" in third.text


def test_a_used_order_is_refused_at_both_ends(site: Site) -> None:
    used = site.order(site.a, site.b)
    kept = used.read_bytes()
    site.migrate(site.a, site.b, given=used)
    site.migrate(site.b, site.a)
    again = refused(site, write(site, kept))
    assert "generation" in again.text


def rank(site: Site, manager: Manager, level: int) -> None:
    """Enrol the platform anew, with this trust level."""
    register, files = Register(AuthorityDirectory.open(manager.authority)), manager.directory
    evidence_, answer, issued = (files / f"{name}.json" for name in ("evidence", "answer", "issued"))
    manager.ctl("platform", "evidence", "--out", str(evidence_))
    vendors = evidence.load_vendors(files / "hwtpm" / "vendor-ca.pem")
    _, challenge = register.challenge(site.platforms[manager], evidence_.read_bytes(), vendors, level)
    (files / "challenge.json").write_bytes(challenge)
    manager.ctl("platform", "activate", str(files / "challenge.json"), "--out", str(answer))
    issued.write_bytes(register.enrol(answer.read_bytes())[2])
    manager.ctl("platform", "install", str(issued))


def test_no_vtpm_goes_to_a_platform_that_the_authority_trusts_less(site: Site) -> None:
    rank(site, site.a, 5)
    with pytest.raises(Refused, match="no vTPM goes down") as refused_:
        site.migrate(site.a, site.b)
    assert "5 at the source and 0 at the destination" in refused_.value.text
    assert site.a.show("v")["state"] == "running" and site.b.ctl("list") == []
    rank(site, site.b, 5)
    site.migrate(site.a, site.b)
    assert site.b.show("v")["state"] == "running"


def test_no_vtpm_goes_where_its_name_is_taken(site: Site) -> None:
    site.b.ctl("create", "v")
    with pytest.raises(Refused, match=r"policy.*there is a vTPM 'v' already") as refused_:
        site.migrate(site.a, site.b)
    assert (refused_.value.code, refused_.value.cause) == (REFUSED, "policy")
    assert site.a.show("v")["state"] == "running"
    site.a.guest("v").run("tpm2_getrandom", "8")


def test_a_vtpm_that_failed_stays(site: Site) -> None:
    os.kill(site.a.swtpm_pid("v"), 9)
    until(lambda: site.a.show("v")["state"] == "failed", what="the death is noticed")
    with pytest.raises(Refused, match="reset the guest first"):
        site.migrate(site.a, site.b)


# -- somebody in between ------------------------------------------------------------------------------------------


@pytest.fixture
def between(site: Site) -> Iterator[Callable[[Between], Middle]]:
    made: list[Middle] = []

    def one(what: Between) -> Middle:
        made.append(Middle(address(site.b), what))
        return made[-1]

    yield one
    for each in made:
        each.close()


def once(last: int) -> Between:
    """Cut before frame number ``last``; from then on nothing is in the way."""
    over: list[bool] = []

    def cut(number: int, source: bool, frame: bytes) -> bytes | None:
        if over or number < last:
            return frame
        over.append(True)
        return None

    return cut


Between_ = Callable[[Between], Middle]


@pytest.mark.parametrize("last", range(FRAMES))
def test_a_move_that_is_cut_after_any_message_ends_with_one_vtpm(site: Site, between: Between_, last: int) -> None:
    uuid = site.a.show("v")["uuid"]
    guest = site.a.guest("v")
    extended = guest.extend(16)
    cut = between(once(last))
    with pytest.raises(Refused) as ended:
        site.migrate(site.a, site.b, at=cut.address)
    assert ended.value.code == (MOVE if last < 4 else ABORTED if last <= 5 else UNCONFIRMED)
    if last > 5:  # the tombstone stands: the source asks again, at the address that it knows
        assert site.a.show("v")["state"] == "gone" or not site.a.ctl("list")
    where, state = settled(site, uuid)
    assert where is (site.a if last <= 5 else site.b) and state == "running"
    assert where.guest("v").pcr(16) == extended


def test_no_byte_of_the_state_leaves_before_both_sides_have_proven_who_they_are(site: Site, between: Between_) -> None:
    seen = between(lambda number, source, frame: frame)
    site.migrate(site.a, site.b, at=seen.address)
    kinds = [frame[2] for _, frame in seen.kept]
    assert kinds[:3] == [0x60, 0x61, 0x62] and set(kinds[3:]) == {0x63}
    assert [source for source, _ in seen.kept][:5] == [True, False, True, False, True]  # READY stands before STATE


@pytest.mark.parametrize("samples", [3, pytest.param(20, marks=pytest.mark.full)])  # of each of five messages
def test_a_changed_byte_is_called_tampered_or_refused_and_never_a_fault_of_the_destination(
    site: Site, between: Between_, samples: int
) -> None:
    sizes: list[int] = []
    trial = between(lambda number, source, frame: sizes.append(len(frame)) or frame)  # type: ignore[func-returns-value]
    site.migrate(site.a, site.b, at=trial.address)
    site.migrate(site.b, site.a)
    for number in range(5):  # before the point of no return
        for sample in range(samples):
            at = framing.HEADER_SIZE + (sizes[number] - framing.HEADER_SIZE - 1) * sample // (samples - 1)
            change = flip if sample % 2 else flip_whole
            changed = between(lambda n, source, frame, k=number, i=at, f=change: f(frame, i) if n == k else frame)  # type: ignore[misc]
            with pytest.raises(Refused) as ended:
                site.migrate(site.a, site.b, at=changed.address)
            told = [each["cause"] for each in [*site.a.ctl("migrations"), *site.b.ctl("migrations")]]
            assert "resume-failed" not in {*told, ended.value.cause}, (number, at)
            assert ended.value.cause in CHANGED, (number, at, ended.value.text)
            assert site.a.show("v")["state"] == "running" and site.b.ctl("list") == []
    site.a.guest("v").run("tpm2_getrandom", "8")


# what is said of a changed message: it was changed, or what it says now is refused; or the connection was ended for it
CHANGED = {"tampered", "evidence", "order", "version", "policy", "peer-lost"}


def flip(frame: bytes, at: int) -> bytes:
    return frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :]


def flip_whole(frame: bytes, at: int) -> bytes:
    """The same in the body, under a CRC that fits."""
    (found,) = framing.Decoder(1 << 20).feed(frame)
    return framing.encode(replace(found, body=flip(found.body, at - framing.HEADER_SIZE)))


class Impostor:
    """Somebody in between who has recorded an earlier move, and puts in what is his, or was theirs."""

    def __init__(self, earlier: list[Any]) -> None:
        self.key = SigningKey.create().public.uncompressed
        self.offer, self.accept, self.confirm = earlier[:3]

    def swap(self, what: str, frame: bytes) -> bytes:
        message = parsed(frame)
        match what, message:
            case "own share for the source", migration.Accept():
                message = replace(message, share=self.key)
            case "own key for the source", migration.Accept():
                message = replace(message, move_key=self.key)
            case "own share for the destination", migration.Offer():
                message = replace(message, share=self.key)
            case "evidence of an earlier move for the source", migration.Accept():
                message = replace(message, evidence=self.accept.evidence)
            case "the whole answer of an earlier move", migration.Accept():
                message = replace(self.accept, move=message.move)
            case "evidence of an earlier move for the destination", migration.Confirm():
                message = replace(message, evidence=self.confirm.evidence)
            case "the destination's own evidence", migration.Accept():
                self.confirm = migration.Confirm(message.move, message.evidence)
            case "the destination's own evidence", migration.Confirm():
                message = self.confirm
            case _:
                return frame
        return framing.encode(migration.to_frame(message))


SWAPS = (
    "own share for the source",
    "own key for the source",
    "own share for the destination",
    "evidence of an earlier move for the source",
    "the whole answer of an earlier move",
    "evidence of an earlier move for the destination",
    "the destination's own evidence",
)


def parsed(frame: bytes) -> Any:
    (found,) = framing.Decoder(1 << 20).feed(frame)
    return migration.from_frame(found)


def test_whoever_puts_his_own_or_older_things_between_both_sides_is_refused_for_the_evidence(
    site: Site, between: Between_
) -> None:
    seen = between(lambda number, source, frame: frame)
    site.migrate(site.a, site.b, at=seen.address)
    earlier = [parsed(frame) for _, frame in seen.kept[:3]]
    site.migrate(site.b, site.a)
    for what in SWAPS:
        impostor = Impostor(earlier)
        swapped = between(lambda number, source, frame, i=impostor, w=what: i.swap(w, frame))  # type: ignore[misc]
        with pytest.raises(Refused) as refused_:
            site.migrate(site.a, site.b, at=swapped.address)
        assert refused_.value.cause == "evidence", (what, refused_.value.text)
        assert all(frame[2] != 0x63 or not source for source, frame in swapped.kept), what  # no state byte left
        assert site.a.show("v")["state"] == "running" and site.b.ctl("list") == []


def test_an_order_for_one_platform_leads_to_no_other_whatever_the_network_does(site: Site, make: Make) -> None:
    third = site.a.directory.parent / "o"
    third.mkdir(mode=0o711)
    other = Manager(third)
    other.start()
    try:
        with pytest.raises(Refused) as refused_:
            site.migrate(site.a, site.b, at=address(other))
        assert refused_.value.cause == "order" and "and here is" in refused_.value.text
        assert other.ctl("list") == [] and site.a.show("v")["state"] == "running"
    finally:
        other.stop()


def test_a_recorded_stream_means_nothing_when_it_is_played_again(site: Site, between: Between_) -> None:
    seen = between(lambda number, source, frame: frame)
    site.migrate(site.a, site.b, at=seen.address)
    stream = [frame for source, frame in seen.kept if source]
    for restarted in (False, True):
        if restarted:
            site.b.stop()
            site.b.start()
        host, port = address(site.b).rsplit(":", 1)
        play(host, int(port), stream)
        assert [row["name"] for row in site.b.ctl("list")] == ["v"] and len(site.b.ctl("migrations")) == 1


def play(host: str, port: int, stream: list[bytes]) -> None:
    with socket.create_connection((host, port)) as connection, suppress(OSError):
        for frame in stream:
            connection.sendall(frame)
            time.sleep(0.05)
        connection.settimeout(5)
        while connection.recv(65536):
            pass


def test_strangers_who_say_nothing_delay_nobody(site: Site) -> None:
    host, port = address(site.b).rsplit(":", 1)
    idle = [socket.create_connection((host, int(port))) for _ in range(6)]
    began = time.monotonic()
    site.migrate(site.a, site.b)
    assert time.monotonic() - began < 15
    for each in idle:
        each.close()


def test_a_manager_that_stops_does_not_wait_for_a_peer_that_is_silent(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at = f"127.0.0.1:{silent.getsockname()[1]}"
        asked = site.a.vtpmctl_later("migrate", "v", "--to", at, "--order", str(site.order(site.a, site.b)))
        silent.accept()
        began = time.monotonic()
        site.a.stop()
        assert time.monotonic() - began < 20 and asked.wait(20) != 0
    site.a.start()
    assert site.a.show("v")["state"] == "running" and site.a.ctl("migrations") == []


# -- death --------------------------------------------------------------------------------------------------------

COMMITS = [
    ("a", 1, "the move is noted"),
    ("a", 2, "the tombstone"),
    ("a", 3, "the erasure"),
    ("b", 1, "prepared"),
    ("b", 2, "wired"),
    ("b", 3, "committed"),
]


@pytest.mark.parametrize("point", ["written", "anchored"])
@pytest.mark.parametrize(("who", "commit", "what"), COMMITS, ids=lambda value: str(value).replace(" ", "-"))
def test_a_manager_that_dies_at_any_commit_of_a_move_leaves_one_vtpm(
    site: Site, who: str, commit: int, what: str, point: str
) -> None:
    uuid = site.a.show("v")["uuid"]
    furnish(site.a)
    ordered = site.order(site.a, site.b)
    mortal = site.a if who == "a" else site.b
    mortal.stop()
    armed, program = mortal.directory / "armed", mortal.program
    mortal.program = crashing.program(mortal.directory, point, armed, commit)
    mortal.start()
    if who == "a":
        until(lambda: site.a.show("v")["state"] == "running", what="the vTPM is resumed")
    armed.touch()
    with pytest.raises(Refused):
        site.migrate(site.a, site.b, given=ordered)
    mortal.killed()
    armed.unlink()
    mortal.program = program
    where, state = settled(site, uuid)
    assert state in ("running", "failed")
    where.ctl("attach", "v", "--boot", "7")  # where it was not wired yet
    assert where.guest("v").read(INDEX) == bytes(range(32))
    for each in (site.a, site.b):
        assert all(move["ended"] for move in each.ctl("migrations"))


def test_a_vtpm_whose_commit_was_taken_from_the_disk_is_dead_and_nothing_is_undone(site: Site) -> None:
    """The host kills the manager between COMMIT and the anchored commit, and removes the file that says COMMIT."""
    uuid = site.a.show("v")["uuid"]
    furnish(site.a)
    site.a.guest("v").extend(16)
    ordered = site.order(site.a, site.b)
    site.b.stop()
    armed, program = site.b.directory / "armed", site.b.program
    site.b.program = crashing.program(site.b.directory, "sealed", armed, 3)
    site.b.start()
    armed.touch()
    with pytest.raises(Refused):
        site.migrate(site.a, site.b, given=ordered)
    site.b.killed()
    for path in (site.b.state / "moves").iterdir():
        path.unlink()
    armed.unlink()
    site.b.program = program
    where, state = settled(site, uuid)
    assert (where, state) == (site.b, "failed")
    where.ctl("attach", "v", "--boot", "7")
    assert where.guest("v").read(INDEX) == bytes(range(32)) and where.guest("v").pcr(16) == "00" * 32


def test_a_copy_of_the_sources_disk_from_before_the_move_is_refused_after_it(site: Site) -> None:
    site.a.stop()
    copy = site.a.directory / "copy"
    shutil.copytree(site.a.state, copy)
    site.a.start()
    site.migrate(site.a, site.b)
    site.a.stop()
    shutil.rmtree(site.a.state)
    copy.rename(site.a.state)
    code, said = site.a.refuse_to_start()
    assert (code == TRUST and "RollbackError" in said) or "older" in said or "anchor" in said


def test_an_operator_gives_a_waiting_move_up_at_the_destination_and_the_source_goes_on(
    site: Site, between: Between_
) -> None:
    uuid = site.a.show("v")["uuid"]
    cut = between(once(6))
    with pytest.raises(Refused) as ended:
        site.migrate(site.a, site.b, at=cut.address)
    assert ended.value.code == 23
    assert site.b.ctl("abort", "v")["state"] == "released"
    where, state = settled(site, uuid)
    assert where is site.a and state == "running"
    assert site.a.ctl("migrations")[-1]["state"] == "restored"


def test_a_destination_that_is_declared_dead_is_revoked_and_the_vtpm_is_marked_for_ever(
    site: Site, between: Between_
) -> None:
    cut = between(once(6))
    with pytest.raises(Refused):
        site.migrate(site.a, site.b, at=cut.address)
    site.b.kill()
    assert site.a.ctl("declare-dead", "v", "--yes")["state"] == "declared dead"
    shown = site.a.show("v")
    assert (shown["state"], shown["generation"], len(shown["recovered"])) == ("running", 3, 1)
    site.a.guest("v").run("tpm2_getrandom", "8")
    evidence = json.loads(site.a.vtpmctl("quote", "v", "--nonce", "00" * 16).stdout)
    assert evidence["vtpm"]["recovered"] == 1
    site.b.start()
    site.a.ctl("create", "w")
    with pytest.raises(Refused, match=r"is revoked here"):
        site.migrate(site.a, site.b, name="w")


def test_a_move_that_is_over_or_never_was_cannot_be_declared_dead_or_given_up(site: Site) -> None:
    for verb in (("abort", "v"), ("declare-dead", "v", "--yes")):
        with pytest.raises(Refused, match="does not move"):
            site.a.ctl(*verb)


@pytest.mark.parametrize("who", ["a", "b"])
def test_a_full_disk_at_either_side_ends_the_move_and_the_vtpm_stays(
    site: Site, full: Callable[[Manager], Path], who: str
) -> None:
    ordered = site.order(site.a, site.b)
    filler = full(site.a if who == "a" else site.b)
    with pytest.raises(Refused):
        site.migrate(site.a, site.b, given=ordered)
    filler.unlink()
    assert site.a.show("v")["state"] == "running" and site.b.ctl("list") == []
    site.a.guest("v").run("tpm2_getrandom", "8")
    site.migrate(site.a, site.b)
    assert site.b.show("v")["state"] == "running"


def test_a_client_that_follows_by_its_list_of_channels_sees_no_error(site: Site) -> None:
    codes: list[int] = []
    done = threading.Event()

    def work() -> None:
        link = Link(f"{site.a.channel('v')},{site.b.channel('v')}", patience=20.0)
        link.open(5.0)
        while not done.is_set():
            codes.append(raw.rc(link.execute(raw.pcr_extend(16))))
        link.close()

    worker = threading.Thread(target=work)
    worker.start()
    until(lambda: len(codes) > 20, what="the client works")
    site.migrate(site.a, site.b)
    moved = len(codes)
    until(lambda: len(codes) > moved + 20, 20.0, "the client works on")
    done.set()
    worker.join()
    assert set(codes) == {0}
    with Session(site.b.channel("v")) as session:
        assert session.hello().next_seq > len(codes)
    expected = bytes(32)
    for _ in codes:
        expected = tpm_extended(expected)
    assert site.b.guest("v").pcr(16) == expected.hex()


def tpm_extended(value: bytes) -> bytes:
    return hashlib.sha256(value + b"\x11" * 32).digest()
