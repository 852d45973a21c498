"""keys/evidence, trust/bundle, trust/linked with software keys: what is proven, and the first thing that is not."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manager_vm.errors import EvidenceError, NoEvidenceError
from manager_vm.keys import evidence
from manager_vm.trust import bundle, linked, pcrs
from manager_vm.trust.bundle import Bundle, History, Kind
from manager_vm.trust.linked import Demand
from manager_vm.trust.signing import SigningKey
from manager_vm.wire.quote import QuoteBegin, Refusal
from tests import event_logs
from tests.software_platform import AK, NONCE, NOW, SoftwareAk, SoftwarePlatform, complete, proven

HOST = SoftwarePlatform()
VTPM = HOST.vtpm()
GOOD = HOST.linked(VTPM)


def fails(found: Bundle, demand: Demand, match: str) -> None:
    with pytest.raises(EvidenceError, match=match):
        proven(found, demand)


# -- what is proven -------------------------------------------------------------------------------------------


def test_a_good_bundle_proves_vtpm_voucher_platform_and_image() -> None:
    lines = proven(GOOD, HOST.demand())
    heads = ", ".join(line.partition(":")[0] for line in lines)
    assert heads == (
        "nonce, vTPM EK, vTPM EK certificate, vTPM history, vTPM AK, vTPM quote, vTPM PCRs, voucher, "
        "platform, platform quote, platform PCRs, platform event log, image"
    )


HISTORIES = [
    (History(3), "generation 3"),
    (History(3, recovered=1), "RECOVERED once"),
    (History(3, recovered=2), "RECOVERED 2 times"),
    (History(3, reverted=1), "REVERTED once"),
    (History(3, snapshots=4), "4 snapshots are kept"),
]


@pytest.mark.parametrize(("history", "said"), HISTORIES)
def test_a_vtpm_that_was_recovered_or_reverted_or_could_be_is_told_from_others(history: History, said: str) -> None:
    subject = replace(VTPM.subject, history=history)
    made = bundle.parse(evidence.platform_quote(HOST, subject, NONCE))
    (line,) = [each for each in proven(made, HOST.demand()) if each.startswith("vTPM history")]
    assert said in line
    for name in ("generation", "recovered", "reverted", "snapshots"):
        other = replace(history, **{name: getattr(history, name) + 1})
        denied = replace(made, vtpm=replace(made.vtpm, history=other))
        fails(denied, HOST.demand(), "the voucher is not for this vTPM")


def test_a_bundle_survives_its_file() -> None:
    assert bundle.parse(bundle.pack(GOOD)) == GOOD


def test_a_third_party_learns_of_the_voucher_and_nothing_that_other_vtpms_of_the_host_have() -> None:
    stripped = replace(GOOD, kind=Kind.THIRD_PARTY, host=None, vtpm=replace(GOOD.vtpm, certificate=b"", ca=b""))
    assert proven(stripped, HOST.demand())[-1].startswith("voucher: ")
    other = HOST.linked()
    shared = {GOOD.host and GOOD.host.statement, GOOD.vtpm.ca, HOST.ak.public}
    assert other.vtpm.ca == GOOD.vtpm.ca  # which is why it is left out
    packed = bundle.pack(stripped)
    assert not any(bundle._encode(each).encode() in packed for each in shared if each)


def test_an_operators_bundle_proves_where_a_vtpm_is() -> None:
    made = bundle.parse(evidence.platform_quote(HOST, VTPM.subject, NONCE))
    assert (made.kind, made.quote) == (Kind.PLATFORM, None)
    assert proven(made, HOST.demand())[-1].startswith("image: the authority approved it (number 3, 'release')")


def test_an_operators_bundle_is_never_one_for_a_quote() -> None:
    made = bundle.parse(evidence.platform_quote(HOST, VTPM.subject, NONCE))
    fails(replace(GOOD, voucher=made.voucher), HOST.demand(), "the voucher is not for this vTPM, AK, quote and nonce")
    fails(replace(GOOD, host=made.host), HOST.demand(), "the platform's quote: the quote does not carry")


# -- what is not ----------------------------------------------------------------------------------------------


def test_another_nonce_is_the_first_thing_that_is_found() -> None:
    fails(GOOD, HOST.demand(nonce=bytes(32)), "the nonce is another one")


def test_another_authority_is_not_believed() -> None:
    fails(GOOD, HOST.demand(authority=SigningKey.create().public), "an SK's certificate")


def test_an_sk_whose_certificate_has_run_out_is_not_believed() -> None:
    for days in (-60, 365 * 11):
        fails(GOOD, HOST.demand(now=NOW + timedelta(days=days)), "not valid now")


def test_parts_of_two_platforms_of_one_authority_do_not_fit() -> None:
    other_host = SoftwarePlatform(authority=HOST.authority)
    other = other_host.linked()
    fails(replace(GOOD, host=other.host), HOST.demand(), "the platform's quote: the quote does not carry")
    fails(replace(GOOD, voucher=other.voucher), HOST.demand(), "the voucher is not for this")
    fails(replace(GOOD, vtpm=other.vtpm), HOST.demand(), "the voucher is not for this")
    fails(replace(GOOD, quote=other.quote), HOST.demand(), "the voucher is not for this")


def test_an_ak_of_another_vtpm_of_the_same_host_does_not_fit() -> None:
    other = HOST.linked()
    fails(replace(GOOD, quote=other.quote), HOST.demand(), "the voucher is not for this")


def test_the_ek_must_be_certified_by_whom_the_verifier_trusts() -> None:
    from cryptography import x509

    ours, other = (x509.load_der_x509_certificate(each.ca.certificate) for each in (HOST, SoftwarePlatform()))
    assert "trusted CA" in proven(GOOD, HOST.demand(ek_ca=(other, ours)))[2]
    fails(GOOD, HOST.demand(ek_ca=(other,)), "a CA that is not trusted here")


def test_pcr_values_of_the_vtpm_are_those_that_were_quoted() -> None:
    assert GOOD.quote is not None
    for values in ({"sha256": {**VTPM.pcrs, 0: b"x" * 32}}, {"sha1": VTPM.pcrs}, {}, {"sha256": {0: bytes(32)}}):
        fails(replace(GOOD, quote=replace(GOOD.quote, pcrs=values)), HOST.demand(), "the vTPM's PCR values")


@pytest.mark.parametrize("pcr", [12, 13])
def test_a_platform_to_which_something_was_added_from_outside_is_not_good(pcr: int) -> None:
    image = {**HOST.image, pcr: b"x" * 32}
    host = SoftwarePlatform(image=image)
    fails(host.linked(), host.demand(), "PCR 12 or 13 is not zero")


def test_a_platform_whose_manager_has_not_unsealed_is_not_good() -> None:
    host = SoftwarePlatform(values=dict(HOST.image))
    fails(host.linked(), host.demand(), "PCR 11 is not capped")


def test_an_image_that_nobody_approved_needs_to_be_expected() -> None:
    host = SoftwarePlatform(approves=False)
    found = host.linked()
    fails(found, host.demand(), "no approval of this image")
    assert proven(found, host.demand(expected=host.image))[-1].startswith("image: its PCRs are the expected ones")


def test_an_approved_image_that_is_not_the_expected_one_is_not_good() -> None:
    fails(GOOD, HOST.demand(expected={**HOST.image, 9: bytes(32)}), "PCR 9 is not that of the expected image")


@pytest.mark.parametrize("pcr", [4, 9, 11])
def test_an_approval_of_another_image_is_not_good(pcr: int) -> None:
    values = pcrs.serving({**HOST.image, pcr: b"other".ljust(32)})
    host = SoftwarePlatform(values=values)
    fails(host.linked(), host.demand(), f"PCR {pcr} is not that of the image that the authority approved")


# -- the event log --------------------------------------------------------------------------------------------


def booted(events: tuple[event_logs.Measured, ...] = event_logs.BOOT, **other: Any) -> SoftwarePlatform:
    """A platform that has booted as this log says, with the phases that no firmware logs."""
    values = event_logs.values(event_logs.BOOT)
    image = {pcr: values[pcr] for pcr in pcrs.BOUND_PCRS}
    image[11] = pcrs.after_phases(image[11])
    return SoftwarePlatform(image=image, log=event_logs.log(events), **other)


def test_an_event_log_leads_to_the_quoted_pcrs_with_the_phases_and_the_cap() -> None:
    host = booted()
    lines = proven(host.linked(), host.demand())
    assert lines[-2].startswith("platform event log: its 9 events, the phases of the boot and the cap lead")


@pytest.mark.parametrize("left_out", [2, 4, 5, 8])
def test_an_event_log_that_lacks_a_measurement_does_not(left_out: int) -> None:
    events = event_logs.BOOT[:left_out] + event_logs.BOOT[left_out + 1 :]
    host = booted(events)
    fails(host.linked(), host.demand(), f"the event log does not lead to the quoted PCR {event_logs.BOOT[left_out][0]}")


def test_an_event_log_is_covered_by_the_platforms_quote_also_where_no_quoted_pcr_is_concerned() -> None:
    host = booted()
    found = host.linked()
    assert found.host is not None
    other = event_logs.log((*event_logs.BOOT, (7, 1, b"secure boot is off", b"")))
    fails(
        replace(found, host=replace(found.host, log=other)), host.demand(), "the platform's quote: the quote does not"
    )
    fails(replace(found, host=replace(found.host, log=b"")), host.demand(), "the platform's quote: the quote")


# -- what a manager refuses to vouch for ----------------------------------------------------------------------


def refused(question: QuoteBegin, public: bytes, host: SoftwarePlatform = HOST) -> Refusal:
    with pytest.raises(NoEvidenceError) as caught:
        evidence.linked_quote(host, VTPM.subject, question, public)
    assert host.asked == [], "the hardware TPM was asked"
    return Refusal(caught.value.reason)


@pytest.fixture(autouse=True)
def _nothing_asked() -> None:
    HOST.asked.clear()


@pytest.mark.parametrize("missing", [1, 4, 5, 16, 18], ids=["fixedTPM", "fixedParent", "origin", "restricted", "sign"])
def test_a_key_that_is_no_ak_is_refused(missing: int) -> None:
    vtpm = HOST.vtpm(AK & ~(1 << missing))
    assert refused(vtpm.question(), vtpm.ak.public) is Refusal.NOT_AN_AK


def test_a_storage_key_or_rubbish_is_refused() -> None:
    vtpm = HOST.vtpm(AK | 1 << 17)
    assert refused(vtpm.question(), vtpm.ak.public) is Refusal.NOT_AN_AK
    assert refused(vtpm.question(), b"") is Refusal.NOT_AN_AK
    assert refused(vtpm.question(), VTPM.subject.ca) is Refusal.NOT_AN_AK


def test_a_quote_of_another_ak_is_refused() -> None:
    assert refused(VTPM.question(), HOST.vtpm().ak.public) is Refusal.NOT_ITS_QUOTE


def test_what_no_tpm_has_made_or_is_no_quote_is_refused() -> None:
    for made in (
        VTPM.ak.quote(NONCE, VTPM.pcrs, magic=0),
        VTPM.ak.quote(NONCE, VTPM.pcrs, type_=0x8017),
        VTPM.ak.sign(b"any text"),
        VTPM.ak.sign(b""),
    ):
        question = QuoteBegin(1, 0x81000000, NONCE, made.attested, made.signature)
        assert refused(question, VTPM.ak.public) is Refusal.NOT_ITS_QUOTE


def test_a_quote_for_another_nonce_is_refused() -> None:
    assert refused(VTPM.question(carried=bytes(32)), VTPM.ak.public) is Refusal.NONCE


@pytest.mark.parametrize("size", [0, 15, 65, 1000])
def test_a_nonce_that_is_too_short_or_too_long_is_refused(size: int) -> None:
    with pytest.raises(NoEvidenceError) as caught:
        evidence.check_question(VTPM.question(bytes(size)))
    assert caught.value.reason == Refusal.NONCE
    with pytest.raises(NoEvidenceError, match="use 16 to 64"):
        evidence.platform_quote(HOST, VTPM.subject, bytes(size))


@pytest.mark.parametrize("handle", [0, 0x80000000, 0x01C00002, 0x40000001, 0xFFFFFFFF])
def test_a_handle_that_is_not_persistent_is_refused(handle: int) -> None:
    with pytest.raises(NoEvidenceError) as caught:
        evidence.check_question(replace(VTPM.question(), handle=handle))
    assert caught.value.reason == Refusal.NO_KEY


def test_a_vtpm_without_a_recorded_ek_is_refused() -> None:
    other = HOST.vtpm().subject
    for names, certificates in (
        ({}, VTPM.subject.certificates),
        (VTPM.subject.ek_names, {}),
        (other.ek_names, VTPM.subject.certificates),
    ):
        subject = replace(VTPM.subject, ek_names=names, certificates=certificates)
        with pytest.raises(NoEvidenceError) as caught:
            evidence.linked_quote(HOST, subject, VTPM.question(), VTPM.ak.public)
        assert caught.value.reason == Refusal.NO_EK
    assert HOST.asked == []


def test_a_bundle_larger_than_what_a_channel_carries_is_not_made() -> None:
    host = SoftwarePlatform(log=bytes(200_000))
    with pytest.raises(NoEvidenceError, match="the evidence would have"):
        evidence.linked_quote(host, VTPM.subject, VTPM.question(), VTPM.ak.public)


# -- files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"version": 1},
        {"version": True},
        {"kind": "other"},
        {"kind": "third-party"},
        {"kind": "platform"},
        {"nonce": "AB=="},
        {"nonce": 1},
        {"more": "field"},
        {"platform": None},
        {"vtpm": []},
        {"voucher": {"signature": "", "chain": []}},
        {"voucher": {"signature": "", "chain": [""] * 5}},
    ],
    ids=str,
)
def test_a_file_that_is_not_as_specified_is_refused(change: dict[str, Any]) -> None:
    told = {**json.loads(bundle.pack(GOOD)), **change}
    with pytest.raises(EvidenceError):
        bundle.parse(json.dumps(told).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 100_000, b"{" * 50, bytes(1 << 20), b'{"a":1,"a":1}'])
def test_what_is_no_bundle_is_refused(data: bytes) -> None:
    with pytest.raises(EvidenceError):
        bundle.parse(data)


@settings(max_examples=300)
@given(st.integers(0, len(bundle.pack(GOOD)) - 1), st.integers(1, 255))
def test_a_changed_byte_of_the_file_is_an_evidence_error_or_changes_nothing(at: int, mask: int) -> None:
    data = bundle.pack(GOOD)
    changed = data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]
    with contextlib.suppress(EvidenceError):
        list(linked.verify(changed, HOST.demand()))
        assert bundle.parse(changed) == GOOD


def test_software_keys_stand_for_those_of_a_tpm() -> None:
    assert len(SoftwareAk().public) == len(VTPM.ak.public)
    assert complete(GOOD, VTPM) == GOOD
