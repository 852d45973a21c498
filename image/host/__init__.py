"""The host side: VMs started, wired, suspended and stopped on a simulated hypervisor host. See image/README.md."""
