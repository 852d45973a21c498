"""vtpmctl's command line: which verbs there are, what each takes. Texts are in ``help``."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from pathlib import Path

from manager_vm.ctl import (
    audit,
    authority,
    completion,
    credentials,
    details,
    evidence,
    help,
    migration,
    operators,
    platforms,
    recovery,
    relocation,
    snapshots,
    standing,
    wiring,
)

_LONGEST = 86_400.0  # seconds that may be waited for a reply
_Format = argparse.RawDescriptionHelpFormatter

# verbs that take the name of a vTPM that exists
NAMED = [
    "show",
    "start",
    "stop",
    "attach",
    "detach",
    "boot",
    "destroy",
    "release",
    "info",
    "ek-cert",
    "bind",
    "certify",
    "quote",
    "migrate",
    "resume-guest",
    "abort",
    "declare-dead",
    "snapshots",
    "revert",
]


def parser() -> argparse.ArgumentParser:
    """Of the whole command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    top = argparse.ArgumentParser(
        prog="vtpmctl", description=help.DESCRIPTION, epilog=help.EPILOG, formatter_class=_Format
    )
    manager = os.environ.get("VTPM_MANAGER", "")
    top.add_argument("-m", "--manager", default=manager, metavar="DIR|SOCKET|URI", help="which manager")
    key = os.environ.get("VTPM_OPERATOR_KEY", "")
    top.add_argument("--key", default=key, metavar="FILE", help="the operator's key (PEM) that signs the request")
    top.add_argument("--timeout", type=_seconds, default=180.0, metavar="S", help="seconds to wait for a reply")
    top.add_argument("--json", action="store_true", default=False, help="print JSON")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    made = {
        verb: verbs.add_parser(
            verb,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=details.DETAILS.get(verb, ""),
            formatter_class=_Format,
            parents=[common],
        )
        for verb, text in help.VERBS.items()
    }
    _add_arguments(made)
    authority.add_actions(made, common)
    return top


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) <= _LONGEST:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no time to wait: use seconds, at most {_LONGEST:.0f}")


def _add_arguments(verbs: dict[str, argparse.ArgumentParser]) -> None:
    for verb in ("create", *NAMED):
        verbs[verb].add_argument("name", metavar="NAME", help="the vTPM")
    verbs["create"].add_argument("--group", metavar="NAME", help="a tenant's group (default: the manager's own)")
    verbs["create"].add_argument("--vm", metavar="UUID", help="only for the VM with this UUID (QEMU's -uuid)")
    verbs["bind"].add_argument("vm", metavar="UUID|none", help="the VM that it belongs to from now on")
    verbs["start"].add_argument("--power-on", action="store_true", help="_TPM_Init; refused while a guest is live")
    verbs["destroy"].add_argument("--yes", action="store_true", help="do not ask")
    release = verbs["release"]
    release.add_argument("--yes", action="store_true", help="do not ask")
    discard = release.add_mutually_exclusive_group()
    for what in ("run", "state"):
        discard.add_argument(
            f"--discard-{what}",
            dest="discard",
            action="store_const",
            const=what,
            default="",
            help=f"give up its {what}",
        )
    cert = verbs["ek-cert"]
    cert.add_argument("--key", default="rsa2048", choices=["rsa2048", "ecc-p256", "ecc-p384"])
    which = cert.add_mutually_exclusive_group()
    which.add_argument("--ca", action="store_true", help="the certificate of its group's CA instead")
    which.add_argument("--chain", action="store_true", help="both: first the EK's, then the CA's")
    cert.add_argument("--out", type=Path, metavar="FILE", help="write there")
    operators.add_arguments(verbs)
    credentials.add_arguments(verbs["certify"])
    platforms.add_arguments(verbs["platform"])
    recovery.add_arguments(verbs)
    migration.add_arguments(verbs)
    relocation.add_arguments(verbs["relocate"])
    standing.add_arguments(verbs["standing"])
    snapshots.add_arguments(verbs)
    wiring.add_arguments(verbs)
    audit.add_arguments(verbs["audit"])
    evidence.add_arguments(verbs)
    verbs["completion"].add_argument("shell", choices=completion.SHELLS)
