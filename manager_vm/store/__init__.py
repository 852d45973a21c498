"""What the state disk holds: records, the anchored manifest, atomic files."""
