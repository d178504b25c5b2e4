"""Images and kernels, and the progress of building them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from squib.models.base import ResponseModel, StoredModel


class ImageInfo(ResponseModel):
    """A root filesystem in the cache. ``digest`` is ``sha256:`` and the 64 hex digits of the file."""

    name: str
    digest: str
    size_bytes: int
    built_at: datetime
    in_use_by: list[str] = Field(default_factory=list)


class KernelInfo(ResponseModel):
    """A kernel in the cache. ``digest`` is that of its image file."""

    version: str
    digest: str
    size_bytes: int
    built_at: datetime


class Progress(ResponseModel):
    """A step of a long operation. ``done`` and ``total`` are in ``unit``; ``total`` is ``None`` if unknown."""

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
    """A kernel or root filesystem that the user brings: an absolute path on the host."""

    kind: Literal["file"] = "file"
    path: str

    def __str__(self) -> str:
        return self.path


AssetRef = Annotated[CachedRef | HostFileRef, Field(discriminator="kind")]
"""What a VM boots. ``str(ref)`` is how descriptions show it."""
