"""The bond of a VM object: its VM is deleted when this program ends."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress

from squib.errors import NotFound
from squib.sdk.client import EngineClient


class Bond:
    """Binds one VM to this program. ``active`` says whether it does."""

    def __init__(self, engine: EngineClient) -> None:
        self.active = False
        self._engine = engine
        self._stack = AsyncExitStack()
        self._holding: asyncio.Task[None] | None = None

    async def bind(self, vm_id: str, *, if_bound: bool) -> None:
        """Bind a VM; with ``if_bound``, only if it was created bound."""
        if not self.active:
            self.active = True
            holding = self._engine.bind_lifetime(vm_id, if_bound=if_bound)
            self._holding = await self._stack.enter_async_context(holding)

    async def release(self, vm_id: str) -> None:
        """Make the VM independent of this program. Idempotent.

        Raises `DiskFull`.
        """
        if self.active:
            with suppress(NotFound):
                await self._engine.release_vm(vm_id)
            if self._holding:
                self._holding.cancel()
            await self.end()

    async def end(self) -> None:
        """End the bond after the VM was deleted or released. Idempotent."""
        self.active = False
        await self._stack.aclose()
