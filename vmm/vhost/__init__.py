"""Virtio devices whose queues others serve: the kernel (vhost) or a process (vhost-user)."""
