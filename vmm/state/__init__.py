"""State that leaves a machine: what a guest sees of its host, and what may move where."""
