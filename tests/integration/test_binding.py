"""A vTPM that belongs to a VM is served to no other, wherever it is (R6; vtpm/binding)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.conftest import Make
from tests.integration.harness import Manager, Refused
from tests.integration.site import Site
from tests.integration.test_audit import entries

OURS, OTHER = "6f2c0a51-5a0e-4f0c-8f5b-0d7f0c6f2f11", "11111111-2222-4333-8444-555555555555"
CONFIG, BUSY, BOUND = 3, 12, 16


@pytest.fixture
def site(make: Make) -> Iterator[Site]:
    """Two managers of one authority; a has vTPM "v", bound and attached."""
    one = make(fresh=True)
    other = one.directory.parent / "n"
    other.mkdir(mode=0o711)
    two = Manager(other)
    try:
        one.start()
        two.start()
        one.ctl("create", "v", "--vm", OURS.upper())
        one.ctl("attach", "v", "--vm", OURS)
        yield Site(one, two)
    finally:
        if two.running:
            two.stop()


def refusal(manager: Manager, *args: str) -> tuple[int, str, str]:
    """Exit code, class and text of a verb that must fail."""
    with pytest.raises(Refused) as caught:
        manager.ctl(*args)
    return caught.value.code, caught.value.name, caught.value.text


def test_a_bound_vtpm_is_attached_for_its_vm_only_and_stays_so_after_a_move(site: Site) -> None:
    extended = site.a.guest("v").extend(16)
    assert site.a.show("v")["vm"] == OURS and site.a.ctl("list")[0]["vm"] == OURS
    for args, whom in ((("--vm", OTHER), f"VM {OTHER}"), ((), "not named")):
        code, name, text = refusal(site.a, "attach", "v", *args)
        assert (code, name) == (BOUND, "BoundError") and OURS in text and whom in text

    site.migrate(site.a, site.b)
    shown = site.b.show("v")
    assert (shown["vm"], shown["state"], shown["channel"]) == (OURS, "running", "")
    for args in (("--vm", OTHER), ()):
        code, name, text = refusal(site.b, "attach", "v", *args)
        assert (code, name) == (BOUND, "BoundError") and OURS in text
    assert site.b.show("v")["channel"] == "" and not site.b.show("v")["open"]
    site.b.ctl("attach", "v", "--vm", OURS)
    assert site.b.guest("v").pcr(16) == extended


def test_a_binding_survives_a_park_a_restart_and_a_crash(site: Site) -> None:
    a = site.a
    a.ctl("stop", "v")
    a.ctl("start", "v")
    a.stop()
    a.start()
    assert a.show("v")["vm"] == OURS and refusal(a, "attach", "v")[0] == BOUND
    a.kill()
    a.start()
    assert a.show("v")["vm"] == OURS and refusal(a, "attach", "v", "--vm", OTHER)[0] == BOUND
    a.ctl("attach", "v", "--vm", OURS)


def test_a_binding_changes_by_an_operator_while_no_channel_is_wired(site: Site) -> None:
    a = site.a
    link = a.link("v")
    assert refusal(a, "bind", "v", OTHER)[0] == BUSY  # a guest is live
    link.close()
    assert refusal(a, "bind", "v", "none")[0] == BUSY and a.show("v")["vm"] == OURS
    a.ctl("bind", "v", OURS)  # it is
    a.ctl("detach", "v")
    assert a.ctl("bind", "v", OTHER)["vm"] == OTHER
    assert refusal(a, "attach", "v", "--vm", OURS)[0] == BOUND
    assert a.ctl("bind", "v", "none")["vm"] == ""
    a.ctl("attach", "v")
    told = [entry for entry in entries(a) if entry["event"] == "bound"]
    assert [(entry["vtpm"], entry["vm"]) for entry in told] == [("v", OTHER), ("v", "")]
    asked = [entry for entry in entries(a) if entry["event"] == "request" and entry.get("verb") == "bind"]
    assert len(asked) == 5


@pytest.mark.parametrize("wrong", ["6f2c", "00000000-0000-0000-0000-000000000000", "web1"])
def test_what_is_no_vms_uuid_is_refused(site: Site, wrong: str) -> None:
    assert refusal(site.a, "create", "w", "--vm", wrong)[0] == CONFIG
    assert refusal(site.a, "bind", "v", wrong)[0] == CONFIG
    assert refusal(site.a, "attach", "v", "--vm", wrong)[0] == CONFIG
    assert [row["name"] for row in site.a.ctl("list")] == ["v"]


def test_a_vtpm_that_belongs_to_nobody_is_served_to_whom_the_host_says(site: Site) -> None:
    site.a.ctl("create", "w")
    site.a.ctl("attach", "w")
    site.a.ctl("attach", "w", "--vm", OTHER)
    assert site.a.show("w")["vm"] == "" and site.a.guest("w").extend(16)
