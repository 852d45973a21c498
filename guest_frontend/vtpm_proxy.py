"""The kernel's vTPM proxy: /dev/tpmN whose other end is a descriptor of ours (Linux, tpm_vtpm_proxy.rst)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from manager_vm.errors import ConfigError

DEVICE = Path("/dev/vtpmx")
VTPM_PROXY_IOC_NEW_DEV = 0xC014A100
VTPM_PROXY_FLAG_TPM2 = 1
TPM2_CC_SET_LOCALITY = 0x20001000  # drivers/char/tpm/tpm_vtpm_proxy.c; answered here, never by the vTPM
_NEW_DEV = struct.Struct("=IIIII")  # flags, tpm_num, fd, major, minor


@dataclass(frozen=True, slots=True)
class ProxyDevice:
    """``fd``: one read = one command, one write = one response; closing it removes /dev/tpm``number``."""

    number: int
    fd: int


def create() -> ProxyDevice:
    """A new TPM 2.0 device; ConfigError says what the kernel lacks."""
    try:
        control = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ConfigError(f"{DEVICE} does not exist; load the module: modprobe tpm_vtpm_proxy") from None
    except OSError as error:
        raise ConfigError(f"cannot open {DEVICE}: {error.strerror}; the front end for a device must be root") from None
    try:
        request = bytearray(_NEW_DEV.pack(VTPM_PROXY_FLAG_TPM2, 0, 0, 0, 0))
        fcntl.ioctl(control, VTPM_PROXY_IOC_NEW_DEV, request)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "?")
        raise ConfigError(f"the kernel refuses a new TPM device ({name}); are there 65536 already?") from None
    finally:
        os.close(control)
    _, number, fd, _, _ = _NEW_DEV.unpack(request)
    return ProxyDevice(number, fd)
