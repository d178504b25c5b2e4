"""Images and kernels, and the progress of building them."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from squib.models.base import ResponseModel, StoredModel

_KERNEL_REF = re.compile(r"[0-9][A-Za-z0-9_.+~-]{0,62}|(sha256:)?[0-9a-f]{6,64}")


def check_kernel_ref(value: str) -> str:
    """Check that a kernel reference is a version or the start of a digest.

    A digest is given by its first 6 to 64 hex digits, optionally after ``sha256:``.
    """
    if not _KERNEL_REF.fullmatch(value):
        raise ValueError(f"invalid kernel {value!r}: use a version, or the first 6 or more digits of a digest")
    return value


KernelRef = Annotated[str, AfterValidator(check_kernel_ref)]


class ImageInfo(ResponseModel):
    """A root filesystem in the cache.

    ``digest`` is ``sha256:`` and the 64 hex digits of the file; it is empty if the cache's note of it is damaged.
    ``name`` is empty for a former image that only VMs use. ``damage`` says why an image cannot be used.
    """

    name: str
    digest: str
    size_bytes: int
    built_at: datetime
    in_use_by: list[str] = Field(default_factory=list)
    damage: str = ""


class KernelInfo(ResponseModel):
    """A kernel in the cache.

    ``digest`` covers all its files. ``version`` is empty if the cache's note of it is damaged. ``damage`` says why a
    kernel cannot be used. The result of a build leaves ``in_use_by`` empty.
    """

    version: str
    digest: str
    size_bytes: int
    built_at: datetime
    in_use_by: list[str] = Field(default_factory=list)
    damage: str = ""


class TemplateInfo(ResponseModel):
    """A saved VM that new VMs of its configuration are cloned from.

    ``runtime`` is empty if the root filesystem is not an image of squib's. ``used_at`` is when a VM was last cloned
    from it.
    """

    template_id: str
    driver: str
    runtime: str
    vcpu_count: int
    mem_size_mib: int
    disk_size_mib: int
    size_bytes: int
    created_at: datetime
    used_at: datetime


class Progress(ResponseModel):
    """A step of a long operation.

    ``done`` and ``total`` are in ``unit``; ``total`` is ``None`` if unknown.
    """

    step: str
    done: int = 0
    total: int | None = None
    unit: str = ""


OnProgress = Callable[[Progress], None]
"""Called with each step of a long operation."""


class CachedRef(StoredModel):
    """A kernel or root filesystem in squib's cache, by digest."""

    kind: Literal["cached"] = "cached"
    digest: str

    def __str__(self) -> str:
        return self.digest


class HostFileRef(StoredModel):
    """A user's kernel or root filesystem, by absolute path on the host."""

    kind: Literal["file"] = "file"
    path: str

    def __str__(self) -> str:
        return self.path


AssetRef = Annotated[CachedRef | HostFileRef, Field(discriminator="kind")]
"""What a VM boots. ``str(ref)`` is how descriptions show it."""
