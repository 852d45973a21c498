"""The enrolment of platforms, from vtpmctl to vtpmctl: two managers, an authority that lies elsewhere, real TPMs."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from manager_vm.ctl.client import Client
from manager_vm.keys.ek_ca import EkCa
from manager_vm.trust import attestation_ca, policy, tpm_constants, tpm_structures
from manager_vm.trust.authority import AuthorityDirectory
from manager_vm.trust.operator import Role
from manager_vm.trust.signing import SigningKey
from tests import unlinkable_sks
from tests.integration.conftest import Make
from tests.integration.harness import Manager, Refused, until

TRUST, CONFIG = 6, 3
ZERO = dict.fromkeys(policy.BOUND_PCRS, bytes(32))  # what a stand-in's PCRs are at its power-on


class Site:
    """An authority in a directory of its own, an operator, managers that it has provisioned."""

    def __init__(self, make: Make, directory: Path) -> None:
        self.authority = AuthorityDirectory.init(directory / "authority")
        self.directory = directory
        self._make = make
        self._key = directory / "alice.key"
        alice = SigningKey.create()
        alice.store(self._key)
        self._operator = self.authority.enroll_operator("alice", alice.public, Role.ADMIN)
        self._approval = self.authority.approve("now", ZERO)

    def platform(self, name: str) -> Platform:
        """A provisioned manager that is not enrolled."""
        manager = self._make({"authority_dir": None})
        manager.launch_waiting()
        made = Platform(self, manager, name)
        public = str(self.authority.path / "authority.pub")
        made.ctl("provision", public, str(self._operator), "--approval", str(self._approval))
        until(lambda: manager.log().count("READY") > 1, 30, "READY after provisioning")
        return made

    @property
    def key(self) -> str:
        return str(self._key)


@dataclass
class Platform:
    """One manager, and the files of its enrolment."""

    site: Site
    manager: Manager
    name: str

    def ctl(self, *args: str) -> Any:
        return self.manager.ctl("--key", self.site.key, *args)

    def file(self, what: str) -> Path:
        return self.site.directory / f"{self.name}-{what}.json"

    @property
    def vendor(self) -> Path:
        return self.manager.directory / "hwtpm/vendor-ca.pem"

    def evidence(self, *args: str) -> Path:
        self.ctl("platform", "evidence", "--out", str(self.file("evidence")), *args)
        return self.file("evidence")

    def challenge(self, vendor: Path | None = None, name: str = "") -> Path:
        self.ctl(
            *("authority", "enroll", str(self.site.authority.path), "--platform", name or self.name),
            *("--evidence", str(self.file("evidence")), "--vendor-ca", str(vendor or self.vendor)),
            *("--out", str(self.file("challenge"))),
        )
        return self.file("challenge")

    def activate(self, challenge: Path | None = None) -> Path:
        given = str(challenge or self.file("challenge"))
        self.ctl("platform", "activate", given, "--out", str(self.file("answer")))
        return self.file("answer")

    def issue(self, answer: Path | None = None) -> Any:
        given = str(answer or self.file("answer"))
        path = str(self.site.authority.path)
        return self.ctl("authority", "enroll", path, "--answer", given, "--out", str(self.file("enrolment")))

    def install(self, enrolment: Path | None = None) -> Any:
        return self.ctl("platform", "install", str(enrolment or self.file("enrolment")))

    def enrol(self, *args: str) -> Any:
        """All steps; what 'platform show' says then."""
        self.evidence(*args)
        self.challenge()
        self.activate()
        self.issue()
        return self.install()

    def show(self) -> Any:
        return self.ctl("platform", "show")

    def certificates(self) -> list[bytes]:
        """Of the last enrolment."""
        return [bytes.fromhex(each) for each in json.loads(self.file("enrolment").read_bytes())["certificates"]]


@pytest.fixture
def site(make: Make, tmp_path: Path) -> Site:
    return Site(make, tmp_path)


@pytest.fixture
def pair(site: Site) -> tuple[Platform, Platform]:
    return site.platform("one"), site.platform("two")


def changed(path: Path, **fields: Any) -> Path:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **fields}))
    return path


def test_two_platforms_are_enrolled_and_nothing_links_the_certificates_of_one(pair: tuple[Platform, Platform]) -> None:
    one, two = pair
    assert one.show() == {"enrolled": False, "keys": {"assigned": 0, "free": 0, "not_certified": 0}}
    first, second = one.enrol(), two.enrol("--more", "5")
    assert (first["platform"], first["serial"], first["keys"]["free"]) == ("one", 1, 64)
    assert (second["platform"], second["serial"], second["keys"]["free"]) == ("two", 2, 5)
    assert first["ak"] != second["ak"] and first["ek_certificate"] != second["ek_certificate"]
    hosts = [one.certificates(), two.certificates()]
    assert [len(each) for each in hosts] == [64, 5]
    assert unlinkable_sks.linking(hosts) == []
    for der in (der for host in hosts for der in host):
        attestation_ca.verify_sk(der, one.site.authority.public)
        for secret in (b"one", b"two", bytes.fromhex(first["ak"]), bytes.fromhex(second["ak"])):
            assert secret not in der.replace(b"vTPM credential signer", b"")
    shown = one.ctl("authority", "show", str(one.site.authority.path / "platforms/one.json"), "--authority",
                    str(one.site.authority.path / "authority.pub"))  # fmt: skip
    assert shown["verified"] and shown["meaning"]["platform"] == "one"


def test_the_linkability_check_finds_what_would_link() -> None:
    authority = SigningKey.create()
    ca = EkCa.create("one host's CA")
    keys = [SigningKey.create().public.key for _ in range(6)]
    month = datetime.datetime(2026, 11, 3, tzinfo=datetime.UTC)
    good = [attestation_ca.certify_sk(key, authority, month) for key in keys]
    assert unlinkable_sks.linking([good[:3], good[3:]]) == []
    other_month = [attestation_ca.certify_sk(key, authority, month.replace(month=12)) for key in keys[3:]]
    assert unlinkable_sks.linking([good[:3], other_month])[:1] == ["from"]
    assert "issuer" in unlinkable_sks.linking([good[:3], [ca.issue(key) for key in keys[3:]]])


def test_a_vtpm_gets_a_signing_key_that_no_other_ever_gets(site: Site) -> None:
    platform = site.platform("one")
    platform.ctl("create", "before")
    platform.enrol("--more", "2")
    for name, keys in (("a", (1, 1)), ("b", (0, 2)), ("c", (0, 2))):
        platform.ctl("create", name)
        counts = platform.show()["keys"]
        assert (counts["free"], counts["assigned"]) == keys
    platform.ctl("destroy", "a", "--yes")
    assert platform.show()["keys"] == {"free": 0, "assigned": 1, "not_certified": 0}
    assert platform.enrol("--more", "3")["keys"] == {"free": 3, "assigned": 1, "not_certified": 0}


def test_the_pool_survives_a_restart_and_an_enrolment_that_is_installed_again_changes_nothing(site: Site) -> None:
    platform = site.platform("one")
    platform.enrol("--more", "4")
    platform.ctl("create", "a")
    before = platform.show()
    for _ in range(2):
        platform.manager.stop()
        platform.manager.start()
        assert platform.show() == before == platform.install()
    old = platform.file("enrolment").read_bytes()
    platform.enrol("--more", "1")
    platform.file("enrolment").write_bytes(old)
    with pytest.raises(Refused, match="a newer enrolment") as refused:
        platform.install()
    assert refused.value.code == TRUST and platform.show()["keys"]["free"] == 4
    assert "platform enrolled" in str(platform.ctl("audit"))


def test_steps_that_were_cut_off_are_taken_again_with_the_keys_that_were_made(site: Site) -> None:
    platform = site.platform("one")
    for _ in range(2):
        platform.evidence("--more", "3")
        assert platform.show()["keys"] == {"free": 0, "assigned": 0, "not_certified": 3}
    platform.manager.stop()
    platform.manager.start()
    platform.challenge()
    platform.activate()
    platform.challenge()  # the second challenge; the answer is to the first
    assert platform.issue()["keys"] == 3
    with pytest.raises(Refused, match="waits for no such answer") as refused:
        platform.issue()
    assert refused.value.code == TRUST
    assert platform.install()["keys"]["free"] == 3


def test_a_credential_for_one_platform_is_not_activated_by_the_other(pair: tuple[Platform, Platform]) -> None:
    one, two = pair
    for platform in pair:
        platform.evidence("--more", "1")
        platform.challenge()
    with pytest.raises(Refused, match="another AK") as refused:
        two.activate(one.file("challenge"))
    assert refused.value.code == TRUST
    mixed = json.loads(one.file("evidence").read_bytes()) | {"ak": json.loads(two.file("evidence").read_bytes())["ak"]}
    one.file("evidence").write_text(json.dumps(mixed))
    one.challenge(name="mixed")  # the EK of one with the AK of two: nobody can open that
    with pytest.raises(Refused, match="another TPM") as refused:
        two.activate(one.file("challenge"))
    assert refused.value.code == TRUST
    with pytest.raises(Refused, match="another AK"):
        one.activate()
    two.activate()
    two.issue()
    with pytest.raises(Refused, match="another platform"):
        one.install(two.file("enrolment"))
    assert not one.show()["enrolled"] and not two.show()["enrolled"]


def test_evidence_that_proves_nothing_is_refused_with_the_reason(site: Site, tmp_path: Path) -> None:
    platform = site.platform("one")
    original = platform.evidence("--more", "1").read_bytes()
    stranger, nobody = EkCa.create("stranger"), tmp_path / "stranger.pem"
    nobody.write_bytes(stranger.pem)
    with pytest.raises(Refused, match="not signed by a vendor") as refused:
        platform.challenge(nobody)
    assert refused.value.code == TRUST
    said = json.loads(original)
    ak = tpm_structures.parse_public(bytes.fromhex(said["ak"]))
    weak = (int(ak.attributes) & ~tpm_constants.Attributes.FIXED_TPM).to_bytes(4)
    for field, value, text in (
        ("ak", (ak.area[:4] + weak + ak.area[8:]).hex(), "lacks FIXED_TPM"),
        ("ak", said["ek"], "lacks SIGN_ENCRYPT"),
        ("ek", said["ak"], "not made from a template"),
        ("ek_certificate", "00", "cannot be read"),
    ):
        platform.file("evidence").write_bytes(original)
        changed(platform.file("evidence"), **{field: value})
        with pytest.raises(Refused, match=text) as refused:
            platform.challenge()
        assert refused.value.code == TRUST
    assert list((site.authority.path / "challenges").iterdir()) == []


def test_an_ak_in_software_is_enrolled_nowhere(site: Site) -> None:
    """Its maker can say of it what he likes; he cannot open the credential."""
    platform = site.platform("one")
    said = json.loads(platform.evidence("--more", "1").read_bytes())
    x, y = SigningKey.create().public.point
    area = bytes.fromhex(said["ak"])[:-68] + b"\0\x20" + x + b"\0\x20" + y
    changed(platform.file("evidence"), ak=area.hex())
    platform.challenge()
    with pytest.raises(Refused, match="another AK"):
        platform.activate()
    pending = json.loads(next((site.authority.path / "challenges").iterdir()).read_bytes())
    id_ = next((site.authority.path / "challenges").iterdir()).stem
    for secret in (bytes(32).hex(), pending["secret_digest"], ""):
        platform.file("answer").write_text(json.dumps({"challenge": id_, "secret": secret, "keys": []}))
        with pytest.raises(Refused, match="has not the credential's secret") as refused:
            platform.issue()
        assert refused.value.code == TRUST
    assert list((site.authority.path / "platforms").iterdir()) == []


def test_a_key_that_the_ak_has_not_certified_for_this_challenge_gets_no_certificate(site: Site) -> None:
    platform = site.platform("one")
    platform.evidence("--more", "2")
    platform.challenge()
    first = json.loads(platform.activate().read_bytes())
    platform.challenge()
    second = json.loads(platform.activate().read_bytes())
    x, y = SigningKey.create().public.point
    mine = first["keys"][0]["public"][:-136] + (b"\0\x20" + x + b"\0\x20" + y).hex()
    swapped = {**second["keys"][0], "public": second["keys"][1]["public"]}
    for keys, text in (
        (first["keys"], "not for this challenge"),
        ([{**second["keys"][0], "public": mine}], "another key"),
        ([swapped], "another key"),
        ([second["keys"][0]] * 2, "names a key twice"),
        ([{**second["keys"][0], "signature": second["keys"][1]["signature"]}], "is not that of the key"),
        ([{"public": mine}], "lacks a part"),
    ):
        platform.file("answer").write_text(json.dumps({**second, "keys": keys}))
        with pytest.raises(Refused, match=text):
            platform.issue()
    platform.file("answer").write_text(json.dumps(second))
    assert platform.issue()["keys"] == 2


def test_a_tpm_has_one_name_and_a_name_one_tpm(pair: tuple[Platform, Platform]) -> None:
    one, two = pair
    one.enrol("--more", "1")
    two.evidence("--more", "1")
    for platform, name, text in ((one, "other", "one has this TPM"), (two, "one", "one has another TPM")):
        with pytest.raises(Refused, match=text) as refused:
            platform.challenge(name=name)
        assert refused.value.code == CONFIG


def test_only_an_admin_takes_a_step_and_a_challenge_of_others_is_not_answered(site: Site, tmp_path: Path) -> None:
    platform = site.platform("one")
    platform.evidence("--more", "1")
    with Client.connect(platform.manager.directory / "admin.sock") as client:
        for verb in ("platform_show", "platform_evidence", "platform_activate", "platform_install"):
            with pytest.raises(Exception, match="must be signed"):
                client.call(verb, statement=b"")
    bob = tmp_path / "bob.key"
    key = SigningKey.create()
    key.store(bob)
    platform.ctl("operator", "add", str(site.authority.enroll_operator("bob", key.public, Role.OPERATOR)))
    with pytest.raises(Refused, match="the role operator may not"):
        platform.manager.ctl("--key", str(bob), "platform", "evidence", "--out", str(tmp_path / "x"))
    assert platform.manager.ctl("--key", str(bob), "platform", "show")["enrolled"] is False
    stranger = AuthorityDirectory.init(tmp_path / "stranger")
    out = str(platform.file("challenge"))
    platform.ctl("authority", "enroll", str(stranger.path), "--platform", "x", "--evidence",
                 str(platform.file("evidence")), "--vendor-ca", str(platform.vendor), "--out", out)  # fmt: skip
    with pytest.raises(Refused, match="not signed by anybody who is trusted") as refused:
        platform.activate()
    assert refused.value.code == TRUST


def test_dev_enrols_itself_with_the_authority_beside_it(make: Make) -> None:
    first, second = make().start(), make().start()
    shown = [manager.ctl("platform", "show") for manager in (first, second)]
    assert all(each["enrolled"] and each["keys"]["free"] == 8 for each in shown)
    assert shown[0]["platform"] != shown[1]["platform"]
    pem = (first.authority / "authority.pem").read_bytes()
    attestation_ca.verify_authority(
        x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER),
        AuthorityDirectory.open(first.authority).public,
    )
    first.stop()
    first.start()
    assert first.ctl("platform", "show") == shown[0]
