"""Queues that the kernel (vhost) or a daemon (vhost-user) serves."""
