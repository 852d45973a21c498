"""vtpmctl: a thin client of wire/admin."""
