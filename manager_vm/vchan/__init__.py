"""Channels between two domains: shared-memory ring plus event, or a virtio-serial port pair."""
