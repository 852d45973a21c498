"""vtpmctl: the command line. Each verb is a row of a table: its arguments, which link it goes over, how it prints."""

from __future__ import annotations

import argparse
import base64
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from manager_vm.ctl import (
    actions,
    audit,
    authority,
    command_line,
    completion,
    credentials,
    doctor,
    evidence,
    help,
    migration,
    operators,
    output,
    platforms,
    recovery,
    relocation,
    snapshots,
    standing,
    wiring,
)
from manager_vm.ctl.client import Client, operator_key, sockets
from manager_vm.ctl.doctor import Level
from manager_vm.errors import ConfigError, MigrationError, VtpmManagerError
from manager_vm.trust import rules
from manager_vm.wire.admin import Progress

Args = argparse.Namespace


def main(argv: list[str] | None = None) -> int:
    """Exit code as in ``--help``."""
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # here, not when the interpreter ends: a reader that left is noticed now
    except OSError as error:  # of standard output: whoever read it has left, or its disk is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(error, BrokenPipeError):
            print(f"vtpmctl: cannot write the result: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(argv: list[str] | None) -> int:
    args = command_line.parser().parse_args(argv)
    try:
        return int(_HANDLERS[args.verb](args) or 0)
    except VtpmManagerError as error:
        print(f"vtpmctl: {output.printable(str(error))}", file=sys.stderr)
        if args.json:
            cause = {"cause": error.cause} if isinstance(error, MigrationError) and error.cause else {}
            print(output.as_json({"error": {"name": type(error).__name__, "text": str(error), **cause}}))
        return error.exit_code


def _call(args: Args, verb: str, *, host: bool = False, **values: Any) -> Any:
    admin_socket, host_socket = sockets(args.manager)
    key = operator_key(args.key, admin_socket) if rules.is_signed(verb) and not host else None
    with Client.connect(host_socket if host else admin_socket, args.timeout, key) as client:
        try:
            return client.call(verb, _progress, **values)
        except (UnicodeError, OverflowError):
            raise ConfigError("an argument is no text, or too large a number, for a request") from None


def _progress(step: Progress) -> None:
    count = f" ({step.done}/{step.total})" if step.total else ""
    print(f"{output.printable(step.text)}{count}", file=sys.stderr)


def _show(args: Args, value: Any) -> None:
    if args.json:
        print(output.as_json(value))
    elif isinstance(value, list):
        print(output.as_table(value))
    elif value:
        print(output.as_fields(value))


def _simple(verb: str, *names: str, host: bool = False) -> Callable[[Args], None]:
    """A verb whose arguments go as they are."""

    def handle(args: Args) -> None:
        _show(args, _call(args, verb, host=host, **{name: getattr(args, name) for name in names}))

    return handle


def _names(args: Args) -> None:
    names = [row["name"] for row in _call(args, "list")]
    print(output.as_json(names) + "\n" if args.json else "".join(f"{name}\n" for name in names), end="")


def _confirm(args: Args, what: str, question: str) -> None:
    if not args.yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise ConfigError(f"{what}; confirm with --yes")
        print(f"{question} Type its name: ", end="", flush=True)
        if sys.stdin.readline().rstrip("\n") != args.name:
            raise ConfigError("not confirmed; nothing was changed")


def _destroy(args: Args) -> None:
    what = f"destroying {args.name!r} loses its keys for ever"
    _confirm(args, what, f"Destroy vTPM {args.name!r} and its keys for ever?")
    _show(args, _call(args, "destroy", name=args.name))


def _release(args: Args) -> None:
    if args.discard:
        lost = {"run": "all since its last anchored state", "state": "its state, so that it can only be destroyed"}
        what = f"of {args.name!r} this gives up {lost[args.discard]}"
        _confirm(args, what, f"Give up {lost[args.discard]}, of vTPM {args.name!r}?")
    _show(args, _call(args, "release", name=args.name, discard=args.discard))


def _revert(args: Args) -> None:
    what = f"what {args.name!r} has become since is lost"
    _confirm(args, what, f"Let vTPM {args.name!r} go back to an earlier state?")
    snapshots.show(args, _call(args, "revert", name=args.name, snapshot=args.snapshot, now=args.now))


def _declare_dead(args: Args) -> None:
    what = f"if the destination of {args.name!r} is alive there are two of it, for ever"
    _confirm(args, what, f"Is the destination of vTPM {args.name!r} gone for good?")
    _show(args, _call(args, "declare_dead", name=args.name))


def _attach(args: Args) -> None:
    if args.print == "qemu":
        print(wiring.qemu_arguments(args.name, args.channel or "ivshmem"))
        return
    if args.print == "libvirt":
        print(wiring.libvirt_device(args.name, args.channel or "shim"))
        return
    vm = _given(args, "vm")
    _show(args, _call(args, "attach", host=True, name=args.name, channel=args.channel, boot=args.boot, **vm))


def _given(args: Args, *names: str) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _ek_cert(args: Args) -> None:
    found = _call(args, "ek_cert", name=args.name)
    wanted = [] if args.ca else [found["certificates"][args.key]]
    pem = "".join(_pem(der) for der in (*wanted, *([found["ca"]] if args.ca or args.chain else [])))
    if args.out:
        _write(args.out, pem)
    if args.json:
        _show(args, {"pem": pem})
    elif not args.out:
        print(pem, end="")


def _pem(der: bytes) -> str:
    body = "".join(_wrap(base64.b64encode(der).decode()))
    return f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n"


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def _wrap(text: str) -> list[str]:
    return [text[i : i + 64] + "\n" for i in range(0, len(text), 64)]


def _doctor(args: Args) -> int:
    findings = doctor.examine(args.manager)
    if args.json:
        print(output.as_json([{"level": f.level, "what": f.what, "remedy": f.remedy} for f in findings]))
    else:
        for found in findings:
            print(f"{found.level:4}  {found.what}" + (f"\n      {found.remedy}" if found.remedy else ""))
    return int(any(found.level is Level.FAIL for found in findings))


def _completion(args: Args) -> None:
    print(completion.script(args.shell, sorted(help.VERBS), command_line.NAMED, actions.ACTIONS, actions.ROLES), end="")


def _offline(args: Args) -> int:
    value, code = authority.run(args)
    _show(args, value)
    return code


_HANDLERS: dict[str, Callable[[Args], int | None]] = {
    "status": _simple("status"),
    "list": _simple("list"),
    "create": lambda args: _show(args, _call(args, "create", name=args.name, **_given(args, "group", "vm"))),
    "bind": _simple("bind", "name", "vm"),
    "show": _simple("show", "name"),
    "start": _simple("start", "name", "power_on"),
    "stop": _simple("stop", "name"),
    "info": _simple("info", "name"),
    "detach": _simple("detach", "name", host=True),
    "boot": _simple("boot", "name", "number", host=True),
    "network": _simple("network", "mac", "addresses", "gateway", host=True),
    "attach": _attach,
    "destroy": _destroy,
    "release": _release,
    "ek-cert": _ek_cert,
    "authority": _offline,
    "key": _offline,
    "provision": lambda args: operators.provision(args, _call),
    "operator": lambda args: operators.operator(args, _call),
    "group": lambda args: operators.group(args, _call),
    "platform": lambda args: platforms.platform(args, _call),
    "recovery": lambda args: recovery.recipient(args, _call),
    "recover": lambda args: recovery.recover(args, _call),
    "approve": lambda args: operators.approve(args, _call),
    "upgrade": lambda args: operators.upgrade(args, _call),
    "revoke": lambda args: operators.revoke(args, _call),
    "approvals": lambda args: operators.approvals(args, _call),
    "migrate": lambda args: migration.migrate(args, _call),
    "resume-guest": migration.resume_guest,
    "evacuate": lambda args: migration.evacuate(args, _call),
    "migrations": lambda args: migration.migrations(args, _call),
    "standing": lambda args: standing.standing(args, _call),
    "snapshots": lambda args: snapshots.snapshots(args, _call),
    "revert": _revert,
    "relocate": lambda args: relocation.relocate(args, _call),
    "receipt": lambda args: evidence.receipt(args, _call),
    "verify-receipt": evidence.verify_receipt,
    "abort": _simple("abort", "name"),
    "declare-dead": _declare_dead,
    "certify": lambda args: credentials.certify(args, _call),
    "credential": _offline,
    "quote": lambda args: evidence.quote(args, _call),
    "verify": evidence.verify,
    "audit": lambda args: audit.run(args, _call),
    "doctor": _doctor,
    "completion": _completion,
    "names": _names,
}

if __name__ == "__main__":
    sys.exit(main())
