"""I/O shells: guests' channels, the admin and the host link."""
