"""Saved states of VMs, and the VMs that run from them."""
