"""What a machine does, as numbers, as a trace, and as a page."""
