"""Chips without virtio. They know nothing of KVM, and run on any machine."""
