"""A template that is being made."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from squib.errors import SquibError


@dataclass
class Making:
    """A template that is being made.

    When it is ``captured``, its VM may go on. When it is ``finished``, it is there, or ``error`` says why not.
    """

    template_id: str
    captured: asyncio.Event = field(default_factory=asyncio.Event)
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    error: SquibError | OSError | None = None
