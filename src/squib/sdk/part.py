"""What the objects for a part of an engine share."""

from __future__ import annotations

from squib.sdk.client import EngineClient


class EnginePart:
    """An object for a part of an engine, such as its images.

    ``engine`` defaults to the engine at ``$SQUIB_URL``, or to the local one.
    """

    def __init__(self, *, engine: EngineClient | None = None) -> None:
        self._engine = engine or EngineClient()
        self._owns_engine = engine is None

    async def close(self) -> None:
        """Close this object's connections, but not an engine that was passed in. Idempotent."""
        if self._owns_engine:
            await self._engine.close()
