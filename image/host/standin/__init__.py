"""The stand-in for a host's hardware TPM: one long-lived swtpm behind the socket that QEMU's tpm-emulator wants."""
