"""The user's terminal: raw mode, pyvmm's own keys, writes that never wait."""
