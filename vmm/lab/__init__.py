"""Emulated arm64 hosts with real KVM, for machines that have none."""
