"""``device``: /dev/tpmN in front of the channel. The device outlives every restart of the manager and of the channel.

The loop keeps reading the kernel's side while a command is out: a new command there means that the kernel gave
up on the old one, whose response is then dropped (the kernel would take it as the new command's answer).
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from guest_frontend import vtpm_proxy
from guest_frontend.control import Control, path_of
from guest_frontend.link import Link
from manager_vm.errors import ConfigError
from manager_vm.wire import tpm

log = logging.getLogger(__name__)

_LOCALITY = 0  # the only one a guest's device has


def run(channel: str) -> None:
    """Make the device and serve it until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    stop_read, stop_write = os.pipe()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.write(stop_write, b"x"))
    link = Link(channel)
    try:
        if await_manager(link, stop_read):
            _run_device(link, channel, stop_read)
    finally:
        link.close()


def await_manager(link: Link, stop: int) -> bool:
    """Wait until the manager answers: the kernel gives up a new device whose first commands fail. False: stopped."""
    while not link.ready:
        if stop in _wait(-1, link, stop):
            return False
        link.step()
    return True


def _run_device(link: Link, channel: str, stop: int) -> None:
    device = vtpm_proxy.create()
    log.info("/dev/tpm%d is served by the vTPM behind %s", device.number, channel)
    notify("READY=1")
    try:
        with _control(device.number, link) as control:
            serve(device.fd, link, stop, control)
    finally:
        os.close(device.fd)


@contextmanager
def _control(number: int, link: Link) -> Iterator[Control | None]:
    """A device is worth having without it."""
    try:
        opened = Control(path_of(f"/dev/tpm{number}"), link)
    except ConfigError as error:
        log.warning("%s; 'quote --device' will not work", error)
        yield None
        return
    try:
        yield opened
    finally:
        opened.close()


def serve(fd: int, link: Link, stop: int, control: Control | None = None) -> None:
    """Carry commands from ``fd`` to ``link`` and answers back until ``stop`` becomes readable."""
    outstanding = False
    while True:
        events = _wait(fd, link, stop, control)
        if stop in events:
            return
        answers = link.step()
        outstanding = _answer(fd, answers, outstanding)
        if control is not None:
            control.step(events)
        if fd in events:
            command = _read(fd)
            if command is None:
                return
            if tpm.command_code(command) == vtpm_proxy.TPM2_CC_SET_LOCALITY:
                _answer(fd, [tpm.error_response(tpm.RC.TPM_RC_SUCCESS)], True)
                continue
            if outstanding:
                log.warning("the kernel gave up on a command; its response will be dropped")
                link.abandon()
            outstanding = _answer(fd, link.submit(command, _LOCALITY), True)


def _wait(fd: int, link: Link, stop: int, control: Control | None = None) -> set[int]:
    poller = select.poll()
    if control is not None:
        control.register(poller)
    for each in (fd, stop, link.fileno()):
        if each >= 0:
            poller.register(each, select.POLLIN)
    return {ready for ready, _ in poller.poll(link.timeout() * 1000 + 1)}


def _answer(fd: int, answers: list[bytes], outstanding: bool) -> bool:
    """Give the answer to the kernel; whether a command is outstanding afterwards."""
    for answer in answers:
        if outstanding:
            try:
                os.write(fd, answer)
            except OSError as error:
                log.warning("the kernel does not take a response any more (%s)", error.strerror)
        outstanding = False
    return outstanding


def _read(fd: int) -> bytes | None:
    """One command; None when the device is gone."""
    try:
        return os.read(fd, tpm.MAX_COMMAND) or None
    except OSError as error:
        log.error("the kernel closed the device: %s", error.strerror)
        return None


def notify(text: str) -> None:
    """Tell systemd (sd_notify(3)); nothing happens outside of it."""
    where = os.environ.get("NOTIFY_SOCKET")
    if where:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto(text.encode(), "\0" + where[1:] if where.startswith("@") else where)
