"""Key hierarchies on two platforms: what each issues, what others make of it, what links whom, what a move costs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from manager_vm.errors import ConfigError, EvidenceError, IntegrityError, StateError
from manager_vm.keys import hierarchy
from manager_vm.keys.ek_ca import EkCa
from manager_vm.keys.hierarchy import Kind
from manager_vm.trust import tpm_structures, vak
from manager_vm.trust.signing import SigningKey
from manager_vm.trust.tpm_constants import Attributes
from tests import unlinkability
from tests.platforms import OutsideCa, Platform, Vtpm, above

AUTHORITY, STRANGER = SigningKey.create(), SigningKey.create()
EACH = 3  # vTPMs on each platform
ISSUING = [Kind.SK, Kind.AK_VEK, Kind.AK_VAK, Kind.INDEPENDENT]


class Site:
    """Two platforms "A" and "B" of one authority, vTPMs "A/0" ... "B/2", each in a group of its own."""

    def __init__(self, directory: Path) -> None:
        certificate = above(AUTHORITY)
        self.outside = OutsideCa()
        self.platforms = {name: Platform(directory, name, AUTHORITY, certificate) for name in "AB"}
        names = [f"{platform}/{number}" for platform in "AB" for number in range(EACH)]
        self.vtpms = {name: Vtpm(directory, name.replace("/", ""), EkCa.create()) for name in names}

    def issue(self, kind: Kind, name: str, platform: str = "") -> vak.Credential:
        """The credential of a vTPM's AK, on the platform that it was made on or on another one."""
        vtpm = self.vtpms[name]
        response = self.outside.certify(vtpm) if kind is Kind.INDEPENDENT else b""
        return hierarchy.of(kind).issue(vtpm.subject(), self.platforms[platform or name[0]], response)

    def verify(self, credential: vak.Credential) -> vak.Verified:
        """As a third party that trusts the authority and the outside CA."""
        return vak.verify(vak.pack(credential), AUTHORITY.public, [self.outside.root])

    def everything(self, kind: Kind) -> dict[str, list[bytes]]:
        """All that third parties get to see of each vTPM."""
        return {
            name: [vak.pack(self.issue(kind, name)), *vtpm.subject().certificates.values(), vtpm.ca.certificate]
            for name, vtpm in self.vtpms.items()
        }

    def close(self) -> None:
        for vtpm in self.vtpms.values():
            vtpm.close()
        for platform in self.platforms.values():
            platform.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    yield made
    made.close()


# -- what is issued, and what others make of it ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ISSUING)
def test_a_third_party_verifies_what_is_issued_and_learns_of_the_platform_what_the_hierarchy_shows(
    site: Site, kind: Kind
) -> None:
    found = site.verify(site.issue(kind, "A/0"))
    assert found.ak == site.vtpms["A/0"].subject().ak
    assert found.platform == ("A" if kind in (Kind.AK_VAK, Kind.AK_VEK) else "")
    if kind is Kind.AK_VEK:
        assert found.challenge is not None and site.outside.ask(site.vtpms["A/0"], found.challenge, found.ak)
    else:
        assert found.challenge is None


@pytest.mark.parametrize("kind", ISSUING)
def test_a_credential_for_one_ak_is_none_for_another(site: Site, kind: Kind) -> None:
    mine, other = site.issue(kind, "A/0"), site.vtpms["A/1"].subject().ak
    forged = replace(mine, ak=other.area)
    if kind is Kind.AK_VEK:  # it proves the vEK: that the AK is elsewhere shows when the vTPM is asked
        found = site.verify(forged)
        assert found.challenge is not None
        with pytest.raises(Exception, match=r"activate|integrity|TPM"):
            site.outside.ask(site.vtpms["A/0"], found.challenge, found.ak)
        forged = replace(mine, ek=hierarchy.ak_vek.vek(site.vtpms["A/1"].subject()))
    with pytest.raises(EvidenceError, match=r"another|not signed"):
        site.verify(forged)


@pytest.mark.parametrize("kind", ISSUING)
def test_a_credential_of_another_authority_or_with_a_changed_byte_is_refused(site: Site, kind: Kind) -> None:
    data = vak.pack(site.issue(kind, "A/0"))
    with pytest.raises(EvidenceError):
        vak.verify(data, STRANGER.public, [OutsideCa().root])
    with pytest.raises(EvidenceError):
        vak.verify(data, None)
    unpacked = vak.unpack(data)
    assert vak.pack(unpacked) == data
    for name in ("statement", "attested", "signature", "ek"):
        value = getattr(unpacked, name)
        if value:
            middle = len(value) // 2
            changed = value[:middle] + bytes([value[middle] ^ 1]) + value[middle + 1 :]
            with pytest.raises(EvidenceError):
                site.verify(replace(unpacked, **{name: changed}))


def test_evidence_over_a_vek_is_none_over_a_vak(site: Site) -> None:
    over_vak = site.issue(Kind.AK_VAK, "A/0")
    ek = hierarchy.ak_vek.vek(site.vtpms["A/0"].subject())
    with pytest.raises(EvidenceError, match="about another key"):
        site.verify(replace(over_vak, hierarchy=Kind.AK_VEK, ek=ek))


def test_the_ek_signs_nothing_and_the_hierarchy_that_wants_it_to_is_refused_by_name(site: Site) -> None:
    assert site.platforms["A"].try_to_sign_with_the_ek() & 0xBF == 0x9C  # TPM_RC_KEY
    with pytest.raises(ConfigError, match=r"never signs \(R9"):
        site.issue(Kind.EK, "A/0")
    with pytest.raises(ConfigError, match=r"never signs \(R9"):
        hierarchy.of(Kind.EK).renew(site.issue(Kind.SK, "A/0"), site.vtpms["A/0"].subject(), site.platforms["B"])
    with pytest.raises(EvidenceError, match="R9"):
        site.verify(replace(site.issue(Kind.SK, "A/0"), hierarchy=Kind.EK))


def test_an_outside_ca_is_asked_first_and_its_answer_must_be_for_this_ak(site: Site) -> None:
    outside, subject, platform = hierarchy.of(Kind.INDEPENDENT), site.vtpms["A/0"].subject(), site.platforms["A"]
    with pytest.raises(StateError, match="send it the request"):
        outside.issue(subject, platform)
    with pytest.raises(EvidenceError, match="for another key"):
        outside.issue(subject, platform, site.outside.certify(site.vtpms["A/1"]))
    with pytest.raises(EvidenceError, match="no certificates in PEM"):
        outside.issue(subject, platform, b"nothing")


def test_a_key_that_is_no_ak_is_vouched_for_by_nobody(site: Site) -> None:
    ak = site.vtpms["A/0"].subject().ak
    for attribute in (Attributes.RESTRICTED, Attributes.FIXED_TPM, Attributes.SIGN_ENCRYPT, Attributes.DECRYPT):
        with pytest.raises(EvidenceError, match="it is no AK"):
            vak.check(replace(ak, attributes=ak.attributes ^ attribute))
    ek = tpm_structures.parse_public(hierarchy.ak_vek.vek(site.vtpms["A/0"].subject()))
    with pytest.raises(EvidenceError, match="it is no AK"):
        vak.check(ek)


def test_a_certificate_for_a_key_that_is_not_the_ek_on_record_is_noticed(site: Site) -> None:
    mine, other = (site.vtpms[name].subject() for name in ("A/0", "A/1"))
    with pytest.raises(IntegrityError, match="not that of the EK on record"):
        hierarchy.ak_vek.vek(replace(mine, certificates=other.certificates))


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"hierarchy": "sk"}', b'{"hierarchy": "x", "ak": ""}', b"\xff"])
def test_what_is_no_credential_is_refused(data: bytes) -> None:
    with pytest.raises(EvidenceError):
        vak.verify(data, AUTHORITY.public)


# -- who can link whom -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.SK, Kind.INDEPENDENT])
def test_nothing_that_third_parties_see_links_two_vtpms_of_a_host(site: Site, kind: Kind) -> None:
    found = site.everything(kind)
    assert unlinkability.links(found) == []
    assert unlinkability.constants(found) - unlinkability.allowed() == set()


@pytest.mark.parametrize("kind", [Kind.AK_VAK, Kind.AK_VEK])
def test_evidence_of_the_platforms_ak_links_the_vtpms_of_a_host_as_the_page_says(site: Site, kind: Kind) -> None:
    found = site.everything(kind)
    linked = unlinkability.links(found)
    hosts = {frozenset(name for name in found if name[0] == platform) for platform in "AB"}
    assert {each.vtpms for each in linked} == hosts
    assert {"statement.name", "statement.ak", "statement.ek"} <= {name for each in linked for name in each.fields}
    assert unlinkability.constants(found) - unlinkability.allowed() == set()


def test_the_search_for_links_finds_one_that_was_put_there(site: Site) -> None:
    found = site.everything(Kind.SK)
    found["A/0"].append(site.vtpms["A/1"].ca.certificate)
    assert {each.vtpms for each in unlinkability.links(found)} == {frozenset({"A/0", "A/1"})}
    found = site.everything(Kind.SK)
    site.platforms["A"]._assigned["A2"] = site.platforms["A"]._assigned["A1"]  # one SK for two vTPMs
    found["A/2"][0] = vak.pack(site.issue(Kind.SK, "A/2"))
    fields = {name for each in unlinkability.links(found) for name in each.fields}
    assert {"chain0.serial", "chain0.key", "statement.signer"} <= fields


# -- a move ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ISSUING)
def test_after_a_move_what_the_module_claims_is_made_anew_and_nothing_else(site: Site, kind: Kind) -> None:
    vtpm, source, target = site.vtpms["A/0"], site.platforms["A"], site.platforms["B"]
    old, before = site.issue(kind, "A/0"), vtpm.subject()
    source_used, used, sks = source.wire.operations(), target.wire.operations(), target.assigned
    asked = site.outside.contacts
    new = hierarchy.of(kind).renew(old, vtpm.subject(), target)
    found = site.verify(new)
    if found.challenge is not None:
        assert site.outside.ask(vtpm, found.challenge, found.ak)
    claimed = hierarchy.of(kind).move
    assert vtpm.subject() == before and claimed.keys == 0
    assert source.wire.operations() == source_used
    assert target.wire.operations() - used == claimed.hardware
    assert target.assigned - sks == claimed.sks
    assert site.outside.contacts - asked == claimed.contacts
    assert found.platform == ("B" if found.platform else "")
    if kind is Kind.SK:
        assert old.chain[0] != new.chain[0]
        assert hashlib.sha256(old.statement).digest() != hashlib.sha256(new.statement).digest()
