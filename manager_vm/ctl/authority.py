"""``vtpmctl authority`` and ``vtpmctl key``: their command lines. Offline: no manager is asked."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from manager_vm.ctl import actions, migration, platforms, recovery, relocation, standing, statements

Args = argparse.Namespace


def run(args: Args) -> tuple[dict[str, Any], int]:
    """Perform ``authority ACTION`` or ``key ACTION``: what to print, exit code."""
    return statements.ACTIONS[args.verb, args.action](args)


def add_actions(verbs: dict[str, argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    """The second words of the verbs here, each with its arguments and its help. ``common``: options of all verbs."""
    made: dict[tuple[str, str], argparse.ArgumentParser] = {}
    for verb, words in actions.ACTIONS.items():
        group = verbs[verb].add_subparsers(dest="action", required=True, metavar="ACTION")
        for action, (text, details) in words.items():
            made[verb, action] = group.add_parser(
                action,
                help=text,
                description=text[0].upper() + text[1:] + ".",
                epilog=details,
                formatter_class=argparse.RawDescriptionHelpFormatter,
                parents=[common],
            )
    for action in ("init", "approve", "revoke", "enroll", "remove", "recover", "order", "relocate", "standing"):
        made["authority", action].add_argument("directory", type=Path, metavar="DIR", help="the authority's directory")
    _add_images(made["authority", "approve"], made["authority", "revoke"])
    _add_operators(made["authority", "enroll"], made["authority", "remove"])
    recovery.add_order(made["authority", "recover"])
    migration.add_order(made["authority", "order"])
    relocation.add_order(made["authority", "relocate"])
    standing.add_order(made["authority", "standing"])
    show = made["authority", "show"]
    show.add_argument("file", type=Path, metavar="FILE", help="a statement")
    show.add_argument("--authority", type=Path, metavar="FILE", help="authority.pub, to verify it with")
    credential = made["credential", "show"]
    credential.add_argument("file", type=Path, metavar="FILE", help="a credential of 'certify'")
    credential.add_argument("--authority", type=Path, metavar="FILE", help="authority.pub of the platforms")
    credential.add_argument("--root", type=Path, metavar="FILE.pem", help="certificate of an outside CA")
    made["key", "new"].add_argument("file", type=Path, metavar="FILE", help="where; the public key goes to FILE.pub")


def _add_images(approve: argparse.ArgumentParser, revoke: argparse.ArgumentParser) -> None:
    what = approve.add_mutually_exclusive_group(required=True)
    what.add_argument("--image", type=Path, metavar="DIR", help="an image with its pcrs.json: build/image/KIND")
    what.add_argument("--pcrs", type=Path, metavar="FILE", help="output of python3 -m image.measure IMAGE --json")
    approve.add_argument("--number", type=int, metavar="N", help="0 to 63 (default: above all that were used)")
    approve.add_argument("--name", metavar="TEXT", help="what people call the image, up to 200 characters")
    which = revoke.add_mutually_exclusive_group(required=True)
    which.add_argument("--number", type=int, nargs="+", metavar="N", help="these approvals")
    which.add_argument("--below", type=int, metavar="N", help="all approvals with a lower number: a minimum version")
    revoke.add_argument("--reason", required=True, metavar="TEXT", help="for people, up to 200 characters")


def _add_operators(enroll: argparse.ArgumentParser, remove: argparse.ArgumentParser) -> None:
    whom = enroll.add_mutually_exclusive_group(required=True)
    whom.add_argument("--operator", metavar="NAME", help="an operator: 1 to 63 letters, digits, '.', '_' or '-'")
    whom.add_argument("--group", metavar="NAME", help="a tenant's group of vTPMs")
    enroll.add_argument("--key", type=Path, metavar="FILE", help="the operator's public key, FILE.pub of 'key new'")
    enroll.add_argument("--authority", type=Path, metavar="FILE", help="the group's own: its authority.pub")
    enroll.add_argument("--hierarchy", choices=actions.HIERARCHIES, help="what vouches for its vTPMs' AKs (default sk)")
    enroll.add_argument("--role", choices=list(actions.ROLES), help="what the operator may ask for")
    enroll.add_argument("--description", default="", metavar="TEXT", help="for people, up to 200 characters")
    platforms.add_enrolment(enroll, whom)
    recovery.add_enrolment(whom)
    remove.add_argument("--operator", required=True, metavar="NAME", help="who is enrolled here")
    remove.add_argument("--reason", required=True, metavar="TEXT", help="for people, up to 200 characters")
