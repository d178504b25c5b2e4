"""Firecracker: its versions, and how it gets onto this host."""
