"""Kernels built here from Debian's source: configurations, patches, the build."""
