"""This terminal: raw mode, detach keys, and attaching it to a terminal in a VM."""
