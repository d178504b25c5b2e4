"""One event loop in a background thread, on which the synchronous API runs the asynchronous one."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import Any, TypeVar

from squib.errors import WrongState
from squib.sdk.client import EngineClient

T = TypeVar("T")

_CLEAN_UP_S = 10.0
_LEAVE_S = 1.0
_END = object()


class Portal:
    """An event loop of its own thread, and the connections to engines that all `VM` objects share.

    Made at first use, once per process (a fork gets its own).
    """

    _current: Portal | None = None
    _guard = threading.Lock()

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="squib", daemon=True)
        self._thread.start()
        self._engines: dict[tuple[str, ...], EngineClient] = {}
        self._ended = False
        atexit.register(self._stop)

    @classmethod
    def get(cls) -> Portal:
        """The portal of this process."""
        with cls._guard:
            if cls._current is None or cls._current._pid != os.getpid():
                cls._current = Portal()
            return cls._current

    def engine(self) -> EngineClient:
        """The engine that the environment names now (``$SQUIB_URL``, ``$SQUIB_HOME``)."""
        engine = EngineClient()
        return self._engines.setdefault(engine.key, engine)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end. Ctrl-C cancels it, waits for its clean-up, and is raised on.

        Raises `WrongState` where that would wait for ever: on this loop itself, in a fork of the process, and at the
        end of the program, when Python closes what was left open.
        """
        if self._ended:
            work.close()
            raise WrongState("the program is at its end", hint="close files, and leave loops, before")
        if self._pid != os.getpid():
            work.close()
            raise WrongState("this VM object was made before a fork of the process", hint="use VM.from_id after it")
        if threading.current_thread() is self._thread:
            work.close()
            raise WrongState(
                "a callback of run() cannot wait for a VM: what it waits for comes after it",
                hint="use another thread, or AsyncVM",
            )
        tasks: list[asyncio.Task[T]] = []
        ended = threading.Event()

        def start() -> None:
            tasks.append(self._loop.create_task(work))
            tasks[0].add_done_callback(lambda _: ended.set())

        def cancel() -> None:
            for task in tasks:
                task.cancel()
            if not tasks:
                work.close()
                ended.set()

        # Not run_coroutine_threadsafe: a Ctrl-C inside it would leave work behind that nobody can cancel.
        try:
            self._loop.call_soon_threadsafe(start)
            ended.wait()
        except BaseException:
            self._loop.call_soon_threadsafe(cancel)
            ended.wait(_CLEAN_UP_S)
            raise
        return tasks[0].result()

    def iterate(self, items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        """What ``items`` yields, one after the other. Leaving the loop closes it."""
        try:
            while (item := self.run(_next(items))) is not _END:
                yield item  # type: ignore[misc]  # it is not the end
        finally:
            if threading.current_thread() is self._thread:  # a garbage collector may run there, which cannot wait
                self._closing = self._loop.create_task(items.aclose())
            elif self._pid == os.getpid() and not self._ended:
                self.run(items.aclose())

    def _stop(self) -> None:
        if self._pid == os.getpid() and self._thread.is_alive():
            self.run(_cancel_all())
            for engine in self._engines.values():
                self.run(engine.close())
            self._ended = True
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=2)


async def _next(items: AsyncGenerator[T, None]) -> T | object:
    return await anext(items, _END)


async def _cancel_all() -> None:
    """End what was left open, such as a file that is written: it does not appear."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_LEAVE_S)
