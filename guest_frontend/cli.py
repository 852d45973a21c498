"""The command line. Modes are imported when chosen: ``pipe`` starts once per TPM tool and has to be quick."""

from __future__ import annotations

import sys

from manager_vm.errors import ConfigError, VtpmManagerError

USAGE = """\
usage: python -m guest_frontend device CHANNEL
       python -m guest_frontend pipe CHANNEL
       python -m guest_frontend socket CHANNEL [--port N]
       python -m guest_frontend qemu CARRIER --host-link SOCKET --vtpm NAME --socket PATH [--vm UUID]
       python -m guest_frontend qemu CARRIER --host-link SOCKET --directory DIR
       python -m guest_frontend quote CHANNEL | --device /dev/tpmrmN  --nonce HEX [options]

The guest's side of a vTPM that lives in the manager.

CHANNEL  unix:PATH | ivshmem[:PCI-ADDRESS] | virtio-serial:NAME; several with commas for a vTPM that may move:
         the session goes on at the next one when the manager at this one has given it away

device   make /dev/tpmN and /dev/tpmrmN (module tpm_vtpm_proxy). The device stays through restarts of the
         manager and of the channel; meanwhile commands see TPM_RC_RETRY, which the kernel repeats for about 6 s.
pipe     raw TPM commands on stdin, responses on stdout. For tpm2-tools:
           export TPM2TOOLS_TCTI="cmd:python3 -m guest_frontend pipe CHANNEL"
         Several at once take turns, each with its own objects and sessions; what one leaves behind is flushed.
socket   a swtpm-style pair of TCP ports on 127.0.0.1: commands at N, control at N+1 (default 2321; 0 picks one and
         prints it). For tpm2-tools: export TPM2TOOLS_TCTI=swtpm:host=127.0.0.1,port=N
qemu     on the host, for VMs whose firmware and kernel know nothing of this: a swtpm, to all appearances, for
           qemu ... -chardev socket,id=c,path=PATH -tpmdev emulator,id=t,chardev=c -device tpm-crb,tpmdev=t
         Each power-on and reset of the VM is reported to the manager at its host link (SOCKET) as a new boot of vTPM
         NAME; this side alone reports its boots, and attaches it. CARRIER is what all guests share: socket:PATH, the
         host's end of the manager VM's port org.vtpm.shims (dev: unix:DIR/shims.sock). With --directory one service
         has all guests of the host: DIR/NAME.sock while there is DIR/NAME.guest, a file with the VM's UUID, or empty.
quote    prove what this guest is and where it runs: a quote by an AK of the vTPM, and its manager's evidence for it,
         as JSON for 'vtpmctl verify'. It goes through the front end that runs. quote --help: options.

exit codes: 0 done, 2 usage, 3 configuration, 4 manager or channel unreachable, 5 protocol, 6 the manager does not
vouch for that, 11 no such vTPM, 12 channel in use, or busy: again
"""


_ONE = {"--socket", "--vtpm", "--host-link", "--vm"}


def main(argv: list[str] | None = None) -> int:
    """Exit code as in USAGE."""
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if args else 2
    try:
        return _run(args)
    except VtpmManagerError as error:
        print(f"guest_frontend: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _run(args: list[str]) -> int:
    match args:
        case ["pipe", channel]:
            from guest_frontend import pipe

            pipe.run(channel)
        case ["device", channel]:
            from guest_frontend import device

            device.run(channel)
        case ["socket", channel]:
            _socket(channel, "2321")
        case ["socket", channel, "--port", port]:
            _socket(channel, port)
        case ["qemu", channel, *rest]:
            return _qemu(channel, rest)
        case ["quote", *rest]:
            from guest_frontend import quoting

            return quoting.main(rest)
        case _:
            print(USAGE, end="", file=sys.stderr)
            return 2
    return 0


def _qemu(carrier: str, args: list[str]) -> int:
    """Options in any order, each once."""
    options = dict(zip(args[::2], args[1::2], strict=False))
    whole = len(args) == 2 * len(options)
    from guest_frontend import qemu

    if whole and options.keys() == {"--host-link", "--directory"}:
        qemu.run_all(carrier, options["--directory"], options["--host-link"])
    elif whole and {"--socket", "--vtpm", "--host-link"} <= options.keys() <= _ONE:
        vm = options.get("--vm", "")
        qemu.run(carrier, options["--socket"], options["--vtpm"], options["--host-link"], vm)
    else:
        print(USAGE, end="", file=sys.stderr)
        return 2
    return 0


def _socket(channel: str, port: str) -> None:
    from guest_frontend import socket

    if not port.isdecimal() or int(port) > 65534:
        raise ConfigError(f"--port {port!r}: use a number below 65535, or 0")
    socket.run(channel, int(port))
