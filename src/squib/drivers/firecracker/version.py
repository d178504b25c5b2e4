"""Versions of Firecracker: how they are written, and which are supported."""

from __future__ import annotations

import re

from squib.errors import InvalidArgument, Unsupported

Version = tuple[int, int, int]

MINIMUM_VERSION = (1, 10)
"""The oldest supported version. Compare it with a `Version` as it is."""

CANNOT_RESUME = ((1, 16, 0), (1, 16, 1))
"""Versions that deliver nothing to the guest's vsock after a pause and a resume, unless a snapshot was made between.

Seen with 1.16.1. Later versions do not stop the delivery (``fix(vsock): do not arm the TRANSPORT_RESET RX gate on bare
resume`` in Firecracker's repository).
"""

CANNOT_RESUME_BECAUSE = "after a resume it cannot reach the guest"
OTHER_VERSION = "squib install firecracker --version 1.17.0"

KEEPS_NUMBERS_SINCE = (1, 15)
"""The first version that saves how many connections to the guest's vsock there were.

Older ones number them anew when they load a saved state. So they mistake what the guest sends to a connection of before
for what it sends to a new one, and the guest does the same.
"""

_VERSION = re.compile(r"(?<![\w.])v?(\d{1,6})\.(\d{1,6})\.(\d{1,6})(?![\w.])")


def parse_version(text: str) -> Version:
    """Return the first version in ``text``.

    ``text`` is a version, such as ``1.16.1`` or ``v1.16.1``, or what ``firecracker --version`` or ``jailer --version``
    prints. A suffix such as ``-dev`` is ignored.

    Raises `InvalidArgument` if ``text`` contains no version.
    """
    found = _VERSION.search(text)
    if found is None:
        raise InvalidArgument(f"no version in {text[:100]!r}: one such as 1.16.1 was expected")
    major, minor, patch = map(int, found.groups())
    return major, minor, patch


def show_version(version: Version) -> str:
    """Return a version as users write it, without the ``v``."""
    return ".".join(map(str, version))


def check_supported(version: Version) -> None:
    """Check that squib works with a version. Raises `Unsupported`."""
    if version < MINIMUM_VERSION:
        minimum = ".".join(map(str, MINIMUM_VERSION))
        raise Unsupported(
            f"Firecracker {show_version(version)} is too old: squib needs {minimum} or later",
            hint="squib install firecracker",
        )
