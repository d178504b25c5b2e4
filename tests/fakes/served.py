"""An engine that answers on its state directory's socket, in a thread: what client programs find."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from squib.api.app import create_app
from squib.api.connections import Server
from squib.core.engine import Engine
from squib.host import sockets
from tests.fakes.agent import FakeAgent
from tests.fakes.engine import Rig
from tests.fakes.guest import running_vm

T = TypeVar("T")


class Served:
    """The engine of ``rig``. In it runs a VM ``web`` whose guest is ``agent``."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.engine: Engine
        self.agent: FakeAgent
        self._loop: asyncio.AbstractEventLoop
        self._ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._stop: asyncio.Event
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="served")

    async def _main(self) -> None:
        try:
            async with self.rig.engine() as self.engine, running_vm(self.engine, self.rig.config) as self.agent:
                self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
                server = Server(create_app(self.engine), sockets.listen(self.rig.home.engine_socket))
                answering = asyncio.create_task(server.answer())
                await server.answering.wait()
                self._ready.set_result(None)
                await self._stop.wait()
                server.should_exit = server.force_exit = True
                await answering
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            raise

    def call(self, work: Callable[[Engine], Awaitable[T]]) -> T:
        """Do something in the engine's thread."""

        async def run() -> T:
            return await work(self.engine)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(timeout=20)

    @contextlib.contextmanager
    def running(self) -> Iterator[Served]:
        self._thread.start()
        self._ready.result(timeout=20)
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(timeout=20)
            assert not self._thread.is_alive()
            self.rig.home.engine_socket.unlink(missing_ok=True)
            self.rig.clean_up()
