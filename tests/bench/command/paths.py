"""The paths of a command that are measured, and how they are called."""

from __future__ import annotations

BARE, DEV = "a", "b"
BARE_FREE, DEV_FREE = "a-free", "b-free"
BARE_KEY, RELAY, DEV_PING = "a-key", "relay", "b-ping"
IVSHMEM, VIRTIO, CRB = "c-ivshmem", "c-virtio-serial", "d"
IN_MANAGER = "manager-bare"
HOST_SPEED, MANAGER_SPEED = "host-speed", "manager-speed"

TITLES = {
    BARE: "(a) bare swtpm",
    DEV: "(b) dev, ring",
    BARE_FREE: "(a) not pinned",
    DEV_FREE: "(b) not pinned",
    BARE_KEY: "(a) with encrypted state",
    RELAY: "relay in between",
    DEV_PING: "(b) PING only",
    IVSHMEM: "(c) guest, ivshmem",
    VIRTIO: "(c) guest, virtio-serial",
    CRB: "(d) guest, tpm-crb",
    IN_MANAGER: "bare swtpm in the manager VM",
    HOST_SPEED: "the host's processor",
    MANAGER_SPEED: "the manager VM's processor",
}


def ping(path: str) -> str:
    """PING and PONG on the channel of a path of (c)."""
    return f"{path}-ping"


def again(path: str) -> str:
    """A path of (c) as it was when its parts were measured."""
    return f"{path}-again"


def link(path: str) -> str:
    """The channel of a path of (c) without the guest's kernel."""
    return f"{path}-link"


def title(path: str) -> str:
    """For people."""
    for suffix, words in (("-ping", "PING only"), ("-link", "without the kernel"), ("-again", "again")):
        if path not in TITLES and path.endswith(suffix):
            return f"{TITLES[path.removesuffix(suffix)]}, {words}"
    return TITLES[path]
