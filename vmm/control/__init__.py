"""Questions and orders to a running machine, by HTTP over a Unix socket."""
