"""This terminal: raw mode, detach keys, and attaching to a VM's terminal."""
