"""``run``: the main job shown from power-on to a second guest attached while the first works."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from image.host.guest import Guest
from image.host.host import Host
from image.host.wires import Carrier
from manager_vm.errors import HostError

SCRIPT = Path(__file__).with_name("demo.sh")
_BOOT = 240.0  # seconds for a guest under emulation
_DEVICE = 90.0  # seconds from boot to /dev/tpmrm0
_DEMO = 300.0
LOOP = "n=0; while ! test -e /tmp/stop; do tpm2_getrandom -o /dev/null 1 || exit 1; n=$((n+1)); done; echo $n"


class Narrator:
    """Lines with the seconds since the start."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._start:5.1f} s] {text}", flush=True)


def run(host: Host, carrier: Carrier, narrator: Narrator) -> None:
    """Everything; HostError if any step does not do what it should."""
    say = narrator.say
    say("manager: booting (OVMF, unified kernel image, dm-verity root); under emulation this takes 40 s")
    manager = host.start_manager()
    say("manager: READY")
    first = start_guest(host, "guest1", carrier, narrator)
    say("guest1's console:")
    with console(first):
        run_script(host, first)
    second = _attach_second(host, first, carrier, narrator)
    out = second.vm.agent.check("tpm2_getrandom --hex 16")
    say(f"guest2: tpm2_getrandom: {out.strip()}")
    ours = [name for name in vtpm_processes(manager.agent.check("cat /proc/[0-9]*/comm").splitlines())]
    say(f"swtpm processes in the manager VM: {len(ours)}; on this host: only the stand-in hardware TPM")
    for vtpm in host.links.admin("list"):
        say(f"vTPM {vtpm['name']}: {vtpm['state']} on {vtpm['channel']}, boot {vtpm['boot']}")


def start_guest(host: Host, name: str, carrier: Carrier, narrator: Narrator) -> Guest:
    """Create a vTPM and a guest that uses it; returns when /dev/tpmrm0 is there."""
    host.links.admin("create", name=name)
    narrator.say(f"manager: vTPM {name} created; {name}: booting, wired over {carrier}")
    guest = host.add_guest(name, carrier)
    guest.vm.agent.wait(_BOOT)
    await_device(guest)
    channel = host.links.admin("show", name=name)["channel"]
    narrator.say(f"{name}: /dev/tpmrm0 is there, channel {channel} in the manager")
    return guest


def await_device(guest: Guest, timeout: float = _DEVICE) -> None:
    """Until the guest's kernel has its TPM."""
    command = f"for i in $(seq {int(timeout * 5)}); do test -c /dev/tpmrm0 && exit 0; sleep 0.2; done; exit 1"
    if guest.vm.agent.run(command, timeout + 30).status:
        journal = guest.vm.agent.run("journalctl -b -n 20 --no-pager -u 'vtpm-guest@*'").out
        raise HostError(f"guest {guest.name} has no /dev/tpmrm0 after {timeout:.0f} s; its front end says:\n{journal}")


def run_script(host: Host, guest: Guest) -> None:
    """The demonstration in the guest, on its console."""
    certificates = host.links.admin("ek_cert", name=guest.name)
    guest.vm.agent.write("/root/ca.pem", ssl.DER_cert_to_PEM_cert(certificates["ca"]).encode())
    guest.vm.agent.write("/root/demo.sh", SCRIPT.read_bytes())
    done = guest.vm.agent.run("sh /root/demo.sh /root/ca.pem >/dev/ttyS0 2>&1", _DEMO)
    if done.status:
        raise HostError(f"the demonstration failed in {guest.name}; its console shows where: {guest.vm.spec.console}")


def vtpm_processes(names: list[str]) -> list[str]:
    """The swtpm processes among process names."""
    return [name for name in names if name == "swtpm"]


@contextmanager
def console(guest: Guest) -> Iterator[None]:
    """Copy what the guest's console says meanwhile to our standard output."""
    done = threading.Event()
    path = guest.vm.spec.console
    start = path.stat().st_size

    def copy() -> None:
        with open(path, errors="replace") as file:
            file.seek(start)
            while True:
                last = done.is_set()
                for line in file:
                    print(f"        | {line.rstrip()}", flush=True)
                if last:
                    return
                done.wait(0.1)

    thread = threading.Thread(target=copy, name="console", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _attach_second(host: Host, first: Guest, carrier: Carrier, narrator: Narrator) -> Guest:
    """Hot-attach another guest while the first one uses its TPM all the time."""
    first.vm.agent.check(f"rm -f /tmp/stop; ({LOOP}) >/tmp/loop.out 2>&1 </dev/null &")
    second = start_guest(host, "guest2", carrier, narrator)
    out = first.vm.agent.check("touch /tmp/stop; sleep 3; cat /tmp/loop.out").strip()
    if not out.isdigit():
        raise HostError(f"guest1 lost its TPM while guest2 was attached: {out}")
    narrator.say(f"guest1: used its TPM {out} times while guest2 was attached, without an error")
    return second
