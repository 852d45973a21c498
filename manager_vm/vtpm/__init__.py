"""One swtpm process, one vTPM, and the registry of all."""
