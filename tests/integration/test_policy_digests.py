"""What trust computes without a TPM is what a real one computes, and what the authority signs opens a real seal."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, utils

from manager_vm.trust import approval, pcrs, policy
from manager_vm.trust.approval import Approval
from manager_vm.trust.authority import AuthorityDirectory
from manager_vm.trust.signing import SigningKey, VerifyKey
from tests.integration.harness import Guest, until

SELECTION = "sha256:" + ",".join(map(str, pcrs.BOUND_PCRS))
ANCHOR, REVOCATION = f"{policy.ANCHOR_INDEX:#x}", f"{policy.REVOCATION_INDEX:#x}"
POLICY_FAIL, POLICY = "0x99d", "0x126"  # TPM_RC_POLICY_FAIL of session 1, TPM_RC_POLICY
SECRET = b"the root key"
LOADING = ("tpm2_createprimary", "tpm2_load", "tpm2_loadexternal", "tpm2_verifysignature", "tpm2_unseal")


class Tpm(Guest):
    """A real swtpm and tpm2-tools, without a resource manager, with a session that waits to be used."""

    def run(self, *argv: str, stdin: bytes = b"") -> bytes:
        """As a guest's, and what the tool has loaded is flushed."""
        output = super().run(*argv, stdin=stdin)
        if argv[0] in LOADING:
            super().run("tpm2_flushcontext", "-t")
        return output

    def start(self, *, trial: bool) -> None:
        """A new session."""
        self.run("tpm2_startauthsession", "-S", "session", *(() if trial else ("--policy-session",)))

    def end(self) -> None:
        """The session is over, whatever was done with it."""
        self.run("tpm2_flushcontext", "session")

    def policy_pcr(self) -> str:
        """The policy's digest (hex) after TPM2_PolicyPCR with the present PCRs."""
        return self._digest("tpm2_policypcr", "-l", SELECTION)

    def policy_nv(self, number: int) -> str:
        """... after TPM2_PolicyNV: the bit is clear."""
        (self.files / "bit").write_bytes(policy.bit(number))
        return self._digest("tpm2_policynv", "-i", "bit", REVOCATION, "bc")

    def policy_authorize(self, approved: bytes, *ticket: str) -> str:
        """... after TPM2_PolicyAuthorize by the key that ``load`` has loaded."""
        (self.files / "approved").write_bytes(approved)
        (self.files / "ref").write_bytes(policy.POLICY_REF)
        return self._digest("tpm2_policyauthorize", "-i", "approved", "-q", "ref", "-n", "key.name", *ticket)

    def _digest(self, tool: str, *argv: str) -> str:
        self.run(tool, "-S", "session", "-L", "digest", *argv)
        return (self.files / "digest").read_bytes().hex()

    def load(self, key: VerifyKey) -> str:
        """Load a public key as the authority's; its Name, hex."""
        (self.files / "key.pub").write_bytes(key.pem)
        what = ("-C", "o", "-G", "ecc", "-a", "userwithauth|sign")
        self.run("tpm2_loadexternal", *what, "-u", "key.pub", "-c", "key", "-n", "key.name")
        return (self.files / "key.name").read_bytes().hex()

    def nv_name_of(self, index: str) -> str:
        """The Name of an NV index, hex."""
        lines = self.run("tpm2_nvreadpublic", index).decode().splitlines()
        return next(line.split()[1] for line in lines if line.strip().startswith("name:"))

    def values(self) -> Mapping[int, bytes]:
        """The PCRs that an approval binds."""
        return {number: bytes.fromhex(self.pcr(number)) for number in pcrs.BOUND_PCRS}


@pytest.fixture
def tpm() -> Iterator[Tpm]:
    """A new hardware TPM with a revocation index in which no bit is set, and PCRs like those of a booted image."""
    directory = Path(tempfile.mkdtemp(prefix="vt"))
    path = directory / "tpm"
    where = ("--server", f"type=unixio,path={path}", "--ctrl", f"type=unixio,path={path}.ctrl")
    argv = ("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={directory}", *where)
    process = subprocess.Popen([*argv, "--flags", "not-need-init,startup-clear"], stderr=subprocess.DEVNULL)
    try:
        until(path.exists, what="swtpm listens")
        made = Tpm(f"swtpm:path={path}", directory, directory)
        attributes = "ownerwrite|ownerread|authread|no_da|nt=bits"
        made.define(REVOCATION, policy.REVOCATION_SIZE, attributes)
        made.run("tpm2_nvsetbits", REVOCATION, "-C", "o", "-i", "0")
        for number in (4, 9, 11):
            made.extend(number, f"{number:02x}" * 32)
        yield made
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(directory)


@pytest.fixture
def authority(tmp_path: Path) -> AuthorityDirectory:
    """A new one."""
    return AuthorityDirectory.init(tmp_path / "authority")


# -- digests --------------------------------------------------------------------------------------------------


def test_the_policy_of_an_approval_is_what_a_trial_session_gives(tpm: Tpm) -> None:
    values = tpm.values()
    for number in (0, 1, 31, 63):
        tpm.start(trial=True)
        tpm.policy_pcr()
        assert policy.approved(values, number).hex() == tpm.policy_nv(number)
        tpm.end()


def test_the_policy_of_the_root_key_is_what_a_trial_session_gives(tpm: Tpm) -> None:
    fixed = SigningKey(ec.derive_private_key(int.from_bytes(b"\x11" * 32), ec.SECP256R1()))
    for key in (fixed.public, SigningKey.create().public):
        assert policy.name(policy.public_area(key)).hex() == tpm.load(key)
        tpm.start(trial=True)
        assert policy.authorised_by(key).hex() == tpm.policy_authorize(bytes(32))
        tpm.end()


def test_the_names_of_both_indices_are_those_that_the_tpm_gives_them(tpm: Tpm) -> None:
    assert policy.revocation_name().hex() == tpm.nv_name_of(REVOCATION)
    tpm.define(ANCHOR, policy.ANCHOR_SIZE, "authread|authwrite|no_da")
    for written in (0, policy.NV_WRITTEN):
        expected = policy.nv_name(policy.ANCHOR_INDEX, policy.ANCHOR_ATTRIBUTES | written, policy.ANCHOR_SIZE)
        assert expected.hex() == tpm.nv_name_of(ANCHOR)
        tpm.run("tpm2_nvwrite", ANCHOR, "-C", ANCHOR, "-i", "-", stdin=bytes(policy.ANCHOR_SIZE))


def test_the_capped_pcr_is_what_the_tpm_has_after_one_extend(tpm: Tpm) -> None:
    before = tpm.values()[pcrs.CAPPED_PCR]
    assert tpm.extend(pcrs.CAPPED_PCR, pcrs.CAP.hex()) == pcrs.capped(before).hex()


# -- a seal ---------------------------------------------------------------------------------------------------


def seal(tpm: Tpm, key: VerifyKey) -> None:
    """SECRET, sealed under the authority's policy."""
    (tpm.files / "policy").write_bytes(policy.authorised_by(key))
    tpm.run("tpm2_createprimary", "-C", "o", "-G", "ecc", "-c", "primary")
    parts = ("-u", "sealed.pub", "-r", "sealed.priv")
    tpm.run("tpm2_create", "-C", "primary", *parts, "-L", "policy", "-i", "-", stdin=SECRET)
    tpm.run("tpm2_load", "-C", "primary", *parts, "-c", "sealed")


def take_ticket(tpm: Tpm, found: Approval) -> None:
    """Have the TPM verify the authority's signature."""
    r, s = int.from_bytes(found.ticket[:32]), int.from_bytes(found.ticket[32:])
    (tpm.files / "signature").write_bytes(utils.encode_dss_signature(r, s))
    (tpm.files / "message").write_bytes(policy.to_be_signed(found.policy))
    argv = ("tpm2_verifysignature", "-c", "key", "-g", "sha256", "-m", "message", "-s", "signature", "-f", "ecdsa")
    tpm.run(*argv, "-t", "ticket")


def open_session(tpm: Tpm, found: Approval) -> None:
    """A session that satisfies the approval, if the TPM agrees."""
    tpm.start(trial=False)
    tpm.policy_pcr()
    tpm.policy_nv(found.number)
    tpm.policy_authorize(found.policy, "-t", "ticket")


def approve(authority: AuthorityDirectory, tpm: Tpm, number: int) -> Approval:
    """An approval of what has booted, as a manager reads it from the file."""
    return approval.verify(authority.approve("image", tpm.values(), number).read_bytes(), authority.public)


def test_an_approval_opens_the_seal_until_it_is_revoked(tpm: Tpm, authority: AuthorityDirectory) -> None:
    seal(tpm, authority.public)
    tpm.load(authority.public)
    first, second = (approve(authority, tpm, number) for number in (5, 6))
    for found in (first, second):
        take_ticket(tpm, found)
        open_session(tpm, found)
        assert tpm.run("tpm2_unseal", "-c", "sealed", "-p", "session:session") == SECRET
        tpm.end()
    bits = approval.verify_revocation(authority.revoke(below=6, reason="old").read_bytes(), authority.public)
    tpm.run("tpm2_nvsetbits", REVOCATION, "-C", "o", "-i", f"{bits:#x}")
    tpm.start(trial=False)
    tpm.policy_pcr()
    (tpm.files / "bit").write_bytes(policy.bit(5))
    assert POLICY in tpm.fails("tpm2_policynv", "-S", "session", "-i", "bit", REVOCATION, "bc")
    tpm.end()
    take_ticket(tpm, second)
    open_session(tpm, second)
    assert tpm.run("tpm2_unseal", "-c", "sealed", "-p", "session:session") == SECRET
    tpm.end()


def test_nobody_opens_the_seal_after_the_cap(tpm: Tpm, authority: AuthorityDirectory) -> None:
    seal(tpm, authority.public)
    tpm.load(authority.public)
    found = approve(authority, tpm, 0)
    take_ticket(tpm, found)
    tpm.extend(pcrs.CAPPED_PCR, pcrs.CAP.hex())
    tpm.start(trial=False)
    tpm.policy_pcr()
    tpm.policy_nv(0)
    (tpm.files / "approved").write_bytes(found.policy)
    (tpm.files / "ref").write_bytes(policy.POLICY_REF)
    argv = ("tpm2_policyauthorize", "-S", "session", "-i", "approved", "-q", "ref", "-n", "key.name", "-t", "ticket")
    assert "0x1c4" in tpm.fails(*argv)  # TPM_RC_VALUE, parameter 1: the session's policy is not the approved one
    tpm.end()


def test_another_authoritys_approval_does_not_open_the_seal(
    tpm: Tpm, authority: AuthorityDirectory, tmp_path: Path
) -> None:
    seal(tpm, authority.public)
    other = AuthorityDirectory.init(tmp_path / "other")
    tpm.load(other.public)
    found = approve(other, tpm, 0)
    take_ticket(tpm, found)
    open_session(tpm, found)
    assert POLICY_FAIL in tpm.fails("tpm2_unseal", "-c", "sealed", "-p", "session:session")
    tpm.end()
