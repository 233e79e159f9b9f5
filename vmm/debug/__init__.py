"""Look into a running guest: the gdb stub and the watchdog. See README.md."""
