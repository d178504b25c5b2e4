"""The version of this squib."""

from importlib.metadata import version

VERSION = version("squib")
