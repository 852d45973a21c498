"""Bytes to frozen dataclasses and back; nothing else. CHANNEL.md specifies what travels to guests."""
