"""The event loop in a thread that runs the asyncio API for blocking calls."""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any, TypeVar

from squib.errors import SquibError, WrongState
from squib.sdk.client import EngineClient

T = TypeVar("T")

_CANCEL_TIMEOUT_S = 10.0
_EXIT_TIMEOUT_S = 1.0
_END = object()


class Portal:
    """An event loop in a thread, with the engine clients of all `VM` objects.

    `get` creates one portal per process, on first use. A forked process gets its own.
    """

    _current: Portal | None = None
    _guard = threading.Lock()

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="squib", daemon=True)
        self._thread.start()
        self._engines: dict[tuple[str, ...], EngineClient] = {}
        self.undecided: dict[object, Callable[[], Coroutine[Any, Any, None]]] = {}
        """VMs that are bound to this program until their objects are used, each with what makes it independent.

        A program that ends in order calls that.
        """
        self._ended = False
        atexit.register(self._stop)

    def _run_loop(self) -> None:
        """Run the event loop until it is stopped.

        A task that ends with SystemExit or KeyboardInterrupt, as a caller's callback may, keeps the exception for its
        caller, but raises it from the event loop too. The loop goes on with the next step.
        """
        while True:
            with suppress(SystemExit, KeyboardInterrupt):
                self._loop.run_forever()
                return

    @classmethod
    def get(cls) -> Portal:
        """Return the portal of this process; create it if needed."""
        with cls._guard:
            if cls._current is None or cls._current._pid != os.getpid():
                cls._current = Portal()
            return cls._current

    def engine(self) -> EngineClient:
        """Return the shared client for ``$SQUIB_URL`` or ``$SQUIB_HOME``."""
        engine = EngineClient()
        return self._engines.setdefault(engine.key, engine)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and return its result.

        Ctrl-C cancels the coroutine, waits at most 10 s for its cleanup, and raises `KeyboardInterrupt`.

        Raises `WrongState` where the call would deadlock: on the portal's own thread, in a forked process, and while
        the interpreter shuts down.
        """
        if self._ended:
            work.close()
            raise WrongState("the program is at its end", hint="close files and iterators before the program exits")
        if self._pid != os.getpid():
            work.close()
            raise WrongState("this VM object was created before a fork", hint="call VM.from_id in the child process")
        if threading.current_thread() is self._thread:
            work.close()
            raise WrongState(
                "a callback cannot make a blocking VM call: it would deadlock", hint="use another thread, or AsyncVM"
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

        # Not run_coroutine_threadsafe: after a Ctrl-C inside it, the task could not be cancelled.
        try:
            self._loop.call_soon_threadsafe(start)
            ended.wait()
        except BaseException:  # Ctrl-C, or what a signal handler of the program raises
            self._loop.call_soon_threadsafe(cancel)
            ended.wait(_CANCEL_TIMEOUT_S)
            raise
        return tasks[0].result()

    def iterate(self, items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        """Iterate over ``items``; close it when the loop ends."""
        try:
            while (item := self.run(_next(items))) is not _END:
                yield item  # type: ignore[misc]  # _END is excluded above
        finally:
            if threading.current_thread() is self._thread:  # garbage collection may run here; it must not block
                self._closing = self._loop.create_task(items.aclose())
            elif self._pid == os.getpid() and not self._ended:
                self.run(items.aclose())

    def _stop(self) -> None:
        if self._pid == os.getpid() and self._thread.is_alive():
            if not isinstance(getattr(sys, "last_value", None), KeyboardInterrupt):
                for keep in list(self.undecided.values()):
                    with suppress(SquibError):
                        self.run(keep())
            self.run(_cancel_all())
            for engine in self._engines.values():
                self.run(engine.close())
            self._ended = True
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=2)


async def _next(items: AsyncGenerator[T, None]) -> T | object:
    return await anext(items, _END)


async def _cancel_all() -> None:
    """Cancel open operations.

    For example, an unfinished file does not appear.
    """
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_EXIT_TIMEOUT_S)
