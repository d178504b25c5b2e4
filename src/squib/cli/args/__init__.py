"""The arguments that commands share.

These are flags, and how their values are parsed.
"""
