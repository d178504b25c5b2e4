"""The runtimes: root filesystems that squib can build, and their packages."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from types import MappingProxyType

from squib.errors import NotFound

_RECIPE_VERSION = 1
"""Increment this when images change for a reason outside their `Runtime`."""

_BASE_PACKAGES = (
    "adduser",
    "bzip2",
    "ca-certificates",
    "curl",
    "file",
    "git",
    "iproute2",
    "less",
    "netbase",
    "procps",
    "python3",
    "sudo",
    "unzip",
    "vim-tiny",
    "xz-utils",
)


@dataclass(frozen=True)
class Runtime:
    """A recipe: a minimal Debian with ``packages``.

    ``min_memory_mib`` is what a VM needs to boot and work.
    """

    name: str
    packages: tuple[str, ...]
    min_memory_mib: int

    @property
    def key(self) -> str:
        """A digest of the recipe. An image of another key is built again."""
        content = asdict(self) | {"min_memory_mib": None, "version": _RECIPE_VERSION}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


RUNTIMES = MappingProxyType(
    {
        runtime.name: runtime
        for runtime in (
            Runtime("base", _BASE_PACKAGES, min_memory_mib=128),
            Runtime(
                "python3.13", (*_BASE_PACKAGES, "python-is-python3", "python3-pip", "python3-venv"), min_memory_mib=256
            ),
        )
    }
)
"""All runtimes by name. Debian trixie's ``python3`` is 3.13."""


def find_runtime(name: str) -> Runtime:
    """Return the runtime with this name. Raises `NotFound`."""
    if name not in RUNTIMES:
        raise NotFound(f"no runtime is named {name}", hint=f"choose one of {', '.join(RUNTIMES)}")
    return RUNTIMES[name]
