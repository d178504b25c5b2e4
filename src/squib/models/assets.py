"""Images and kernels, and the progress of building them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from pydantic import Field

from squib.models.base import ResponseModel


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
