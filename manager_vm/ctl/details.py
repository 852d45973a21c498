"""What ``vtpmctl VERB --help`` adds for verbs about groups of tenants and credentials. Data only."""

from __future__ import annotations

TENANTS = {
    "group": """\
A group is a tenant's vTPMs: they have their own EK CA, and their own authority says who
operates them. 'add' takes FILE.json of 'authority enroll --group', signed by the
authority of the manager; files behind it are enrolments by the group's authority. A
newer statement may change the hierarchy while the group has no vTPMs; the authority never
changes. 'remove NAME' is refused while the group has vTPMs: only its own operators may
destroy them. 'list' is for anybody. 'add' and 'remove' are for admins.

examples:
  vtpmctl group add acme.json bob.json
  vtpmctl group list
  vtpmctl group remove acme
""",
}
