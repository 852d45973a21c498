"""Sans-I/O automata: events in, events out; no sockets, clocks, randomness or files."""
