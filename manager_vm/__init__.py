"""The vTPM manager: every virtual TPM of a host in one dedicated virtual machine. Start at ARCHITECTURE.md."""
