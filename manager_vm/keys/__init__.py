"""Everything secret: root key, keyslots, anchor, the manager's CA."""
