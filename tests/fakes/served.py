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
from squib.core.lifecycle.delete import delete_vm
from squib.host import sockets
from tests.fakes.agent import FakeAgent
from tests.fakes.engine import Rig
from tests.fakes.guest import running_vm
from tests.fakes.recorder import Recorder

T = TypeVar("T")


class Served:
    """The engine of ``rig``. In it runs a VM ``web`` whose guest is ``agent``. ``requests`` notes what is asked."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.engine: Engine
        self.agent: FakeAgent
        self.vm_id: str
        self.requests: Recorder
        self._loop: asyncio.AbstractEventLoop
        self._ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._stop: asyncio.Event
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="served")

    async def _main(self) -> None:
        try:
            async with self.rig.engine() as self.engine, running_vm(self.engine, self.rig.config) as self.agent:
                self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
                self.vm_id = self.engine.store.get_vm("web").vm_id
                self.requests = Recorder(create_app(self.engine))
                server = Server(self.requests, sockets.listen(self.rig.home.engine_socket))
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

    def clean_up(self) -> None:
        """Remove what a test has made: every VM but ``web``, commands, images, kernels and notes."""

        async def clean(engine: Engine) -> None:
            for record in engine.store.all_vms():
                if record.name != "web":
                    await delete_vm(engine, record.vm_id)
            for entry in engine.images.list():
                engine.images.remove(entry.name or entry.digest)
            for entry in engine.kernels.list():
                engine.kernels.remove(entry.digest)
            await self.agent.forget_processes()

        self.call(clean)
        self.agent.scripts.clear()
        self.rig.driver.behaviour = "--ok"
        self.requests.calls.clear()
        self.requests.before_answer = lambda what: None

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
