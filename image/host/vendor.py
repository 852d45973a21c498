"""The vendor of a simulated host's hardware TPM: EKs and their certificates are in it before its first power-on.

swtpm_setup makes them, with a CA (swtpm_localca) whose key and certificates lie in DIR/vendor.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from image.host.standin.chip import STATE_FILE
from manager_vm.errors import ConfigError, HostError

VENDOR_CA = "vendor-ca.pem"  # in DIR: who has signed the EK certificates
_CA = "vendor"
_PATIENCE = 120.0  # seconds to make RSA keys on a busy machine
_SETUP = """create_certs_tool = {tool}
create_certs_tool_config = {directory}/localca.conf
create_certs_tool_options = {directory}/localca.options
"""
_LOCALCA = """statedir = {directory}
signingkey = {directory}/signkey.pem
issuercert = {directory}/issuercert.pem
certserial = {directory}/certserial
"""


def manufacture(directory: Path, output: Path) -> None:
    """Make the TPM in ``directory``, unless there is one. ``output``: a log. HostError if it fails: there is none then.

    All PCR banks stay active, and nobody owns it.
    """
    if (directory / STATE_FILE).exists():
        return
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = directory / _CA
    shutil.rmtree(made, ignore_errors=True)
    (made / "state").mkdir(mode=0o700, parents=True)
    tool = shutil.which("swtpm_localca")
    (made / "setup.conf").write_text(_SETUP.format(tool=tool, directory=made))
    (made / "localca.conf").write_text(_LOCALCA.format(directory=made))
    (made / "localca.options").write_text("")
    argv = ["swtpm_setup", "--tpm2", "--tpmstate", str(made / "state"), "--config", str(made / "setup.conf")]
    _run([*argv, "--create-ek-cert", "--pcr-banks", "-"], output)
    shutil.copy(made / "issuercert.pem", directory / VENDOR_CA)
    os.rename(made / "state" / STATE_FILE, directory / STATE_FILE)


def _run(argv: list[str], output: Path) -> None:
    what = f"cannot make the hardware TPM's EKs and certificates ({argv[0]})"
    try:
        with open(output, "ab") as log:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=_PATIENCE)
    except FileNotFoundError:
        raise ConfigError(f"{argv[0]} is not installed; run ./build.sh as root, or install swtpm-tools") from None
    except subprocess.TimeoutExpired:
        raise HostError(f"{what} within {_PATIENCE:.0f} s (log: {output})") from None
    if done.returncode:
        raise HostError(f"{what}: status {done.returncode} (log: {output})")
