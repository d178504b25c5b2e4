"""Firecracker's releases: where they are, and which bytes they are.

An archive is installed only if its SHA-256 is known. The digests below are those that Firecracker's project publishes
beside each archive (``firecracker-v1.16.1-x86_64.tgz.sha256.txt``).
"""

from __future__ import annotations

import re

from squib.drivers.firecracker.version import Version, check_supported, parse_version, show_version
from squib.errors import InvalidArgument, Unsupported

ARCHITECTURE = "x86_64"
"""The architecture of squib's guests, and so of its VMMs."""

URL_VARIABLE = "SQUIB_FIRECRACKER_URL"
DEFAULT_URL = "https://github.com/firecracker-microvm/firecracker/releases/download"

DEFAULT_VERSION: Version = (1, 16, 1)

SHA256: dict[Version, str] = {
    (1, 10, 1): "36112969952b0e34fadcfca769d48a55dc22cbba99af17e02bd0e24fc35adc77",
    (1, 13, 1): "59450b9171ff2ebdf2f9a25be3a248a7ba79fb6371aec51a9d6d8eefca7b4faf",
    (1, 14, 1): "ea66dc1fbdb2473bbb95a1e822ae7884cd575a891a8f801258723258d36b7c7c",
    (1, 15, 0): "00cadf7f21e709e939dc0c8d16e2d2ce7b975a62bec6c50f74b421cc8ab3cab4",
    (1, 15, 1): "d4a32ab2322d887ca1bc4a4e7afa9cc35393e6362dfc2b3becb389d362e4275a",
    (1, 16, 1): "382a02a869e4d6d5cb14c40577f9545e8458021ea8b0b2d3fc10ec14d9c242e6",
    (1, 17, 0): "06094a1108ae9e82aa4c23a775aa92758f53f1175d422270d9d6162cb9ade558",
}
"""The hex digests of the archives for `ARCHITECTURE`."""


def archive_name(version: Version) -> str:
    """Return the file name of a release's archive."""
    return f"firecracker-v{show_version(version)}-{ARCHITECTURE}.tgz"


def archive_url(version: Version, base_url: str = DEFAULT_URL) -> str:
    """Return the address of a release's archive."""
    return f"{base_url.rstrip('/')}/v{show_version(version)}/{archive_name(version)}"


def choose_version(text: str | None) -> Version:
    """Return the version that a user names; without a name the default.

    Raises `InvalidArgument`, and `Unsupported` if it is too old.
    """
    if text is None:
        return DEFAULT_VERSION
    if not re.fullmatch(r"v?\d+\.\d+\.\d+", text, re.ASCII):
        raise InvalidArgument(f"invalid version {text!r}: use one such as {show_version(DEFAULT_VERSION)}")
    version = parse_version(text)
    check_supported(version)
    return version


def choose_digest(version: Version, sha256: str | None) -> str:
    """Return the digest that a release's archive must have.

    ``sha256`` is the user's. It is needed for a version whose digest squib does not know.

    Raises `InvalidArgument`.
    """
    if sha256 is not None:
        return parse_digest(sha256)
    if version in SHA256:
        return SHA256[version]
    known = ", ".join(map(show_version, sorted(SHA256)))
    raise InvalidArgument(
        f"the SHA-256 of Firecracker {show_version(version)} is not known; known versions: {known}",
        hint=f"give it: --sha256 HEX   (its project publishes it as {archive_name(version)}.sha256.txt), "
        "or install a file of your own: --from FILE",
    )


def parse_digest(text: str) -> str:
    """Return a SHA-256 in the form of `SHA256`. Raises `InvalidArgument`."""
    digest = text.removeprefix("sha256:").lower()
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise InvalidArgument(f"invalid SHA-256 {text!r}: 64 hex digits were expected")
    return digest


def check_architecture(machine: str) -> None:
    """Check that releases run on this host.

    ``machine`` is its `platform.machine`. Raises `Unsupported`.
    """
    if machine != ARCHITECTURE:
        raise Unsupported(f"squib's VMs are {ARCHITECTURE}, and this host is {machine}")
