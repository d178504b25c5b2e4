"""This terminal: raw mode, detach keys, and attaching.

It is attached to a terminal in a VM.
"""
