"""The Firecracker driver: run VMs in Firecracker, and install it on this host."""
