"""KVM's interface as data: what an out-of-tree kernel adds, and what was asked of a kernel."""
