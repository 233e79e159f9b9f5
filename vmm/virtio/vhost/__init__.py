"""Queues that others serve: the kernel (vhost) or a daemon (vhost-user)."""
