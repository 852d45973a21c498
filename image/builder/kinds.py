"""The images as data: packages, the parts of the checkout, modules of the initrd, kernel arguments."""

from __future__ import annotations

from dataclasses import dataclass

SUITE = "trixie"
PROFILES = ("debug", "production")

_BASE = "systemd systemd-sysv udev dbus kmod mount util-linux linux-image-cloud-amd64 python3 python3-msgpack tpm-udev"
_MANAGER = "python3-cryptography python3-pyroute2 python3-tpm2-pytss swtpm e2fsprogs"
_GUEST = "tpm2-tools openssl qemu-guest-agent"
_AGENT = "qemu-guest-agent"

TOOLS = "systemd-ukify systemd-boot-efi erofs-utils cryptsetup-bin busybox-static python3"

# loaded by the initrd where the kernel has not built them in; what they need comes along
INITRD_MODULES = ("virtio_pci", "virtio_blk", "dm_verity", "sha256_generic", "erofs", "crc32c_generic")

# no_timer_check: a loaded host that emulates the processor could make the timer check panic
CMDLINE = "console=ttyS0 quiet systemd.show_status=no intel_iommu=on no_timer_check systemd.verity=no"

# all that a production image has in usr/bin and usr/sbin: no shell, no package manager, no login, no other interpreter
PRODUCTION_PROGRAMS = (
    r"systemd-[a-z0-9-]+|systemctl|journalctl|udevadm|dbus-daemon|init|poweroff|reboot|shutdown|kmod|modprobe|mount|umount"
    r"|python3(\.\d+)?|swtpm|unshare|setpriv|prlimit|blkid|e2fsck|mke2fs|mkfs\.ext4|resize2fs"
)
# and what goes with the programs that it lacks
PRODUCTION_LEFT_OUT = (
    r"usr/lib/(apt|dpkg|init|klibc|klibc-[^/]*|initramfs-tools|x86_64-linux-gnu/(perl-base|perl/.*))(/.*)?"
    r"|usr/share/(debconf|dpkg|initramfs-tools|keyrings|perl5?|pam-configs)(/.*)?"
    r"|etc/(apt|alternatives|cron\.[a-z]+|default|dpkg|init\.d|initramfs-tools|kernel|rc[0-9S]\.d|skel)(/.*)?"
    r"|var/lib/(dpkg/(info|alternatives|triggers)|pam|ucf)(/.*)?"
)

# where Python looks for code, and what is taken of the checkout: modules, and other files with their places
DIST = "usr/lib/python3/dist-packages"


@dataclass(frozen=True, slots=True)
class Kind:
    """``code``: folders and modules of the checkout. ``files``: its other files -> their places in the image.

    ``directories``: empty ones (the root is read-only: what is mounted needs its place).
    """

    name: str
    packages: str
    code: tuple[str, ...]
    files: tuple[tuple[str, str], ...] = ()
    directories: tuple[str, ...] = ()

    def packages_of(self, profile: str) -> list[str]:
        """The packages to ask for; a debug image can be looked into."""
        return sorted({*self.packages.split(), *([_AGENT] if profile == "debug" else [])})


KINDS = {
    "manager": Kind("manager", f"{_BASE} {_MANAGER}", ("manager_vm",), directories=("var/lib/vtpm-manager",)),
    "guest": Kind(
        "guest",
        f"{_BASE} {_GUEST}",
        (
            "guest_frontend",
            "manager_vm/__init__.py",
            "manager_vm/errors.py",
            "manager_vm/wire",
            "manager_vm/protocol",
            "manager_vm/vchan",
        ),
        (
            ("guest_frontend/systemd/vtpm-guest@.service", "usr/lib/systemd/system/vtpm-guest@.service"),
            ("guest_frontend/systemd/vtpm-guest.conf", "usr/lib/modules-load.d/vtpm-guest.conf"),
            ("guest_frontend/systemd/70-vtpm-guest.rules", "usr/lib/udev/rules.d/70-vtpm-guest.rules"),
        ),
    ),
}
