"""A terminal in a VM, joined to the terminal of this process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from squib.cli.render import Output
from squib.cli.terminal.keys import DetachKeys, KeyMatcher
from squib.cli.terminal.modes import ModeTracker, ReplayFilter
from squib.cli.terminal.rawmode import RawMode, terminal_size
from squib.cli.terminal.streams import ended_by_broken_pipe, never_blocking, read_chunks, takes_more, write_all
from squib.errors import AgentError, EngineError, EngineUnavailable, InvalidArgument, NoShell, SquibError
from squib.models import ExecRequest, PtySize, VMState
from squib.protocol.frames import CommandEnd
from squib.sdk.client import EngineClient
from squib.sdk.terminal import Attach, Terminal, open_terminal

COME_BACK_S = 15.0
"""For how long a lost connection is tried to be made again."""
_PATIENCE_S = 1.0
_TRY_EVERY_S = 0.25
_LASTING_S = 5.0
"""A connection that held for so long and is lost is a new loss, with all its time to come back."""
_LAST_KEYS_S = 0.5
_MAX_TYPED_CHUNKS = 64


@dataclass(frozen=True)
class Joining:
    """How this process is joined to a terminal.

    ``keys`` detach it. What was printed before the byte ``past_until`` is only shown again. ``stays``: the session goes
    on without us, and can be attached to. ``announce``: say which keys those are.
    """

    keys: DetachKeys
    past_until: int = 0
    stays: bool = True
    announce: bool = False


def check_terminal(output: Output, *, hint: str) -> None:
    """Refuse what a terminal is needed for. Raises `InvalidArgument`."""
    if output.json:
        raise InvalidArgument("a terminal and --json exclude each other", hint="leave out --json")
    if not sys.stdin.isatty():
        raise InvalidArgument("standard input is not a terminal", hint=hint)


async def open_shell(output: Output, engine: EngineClient, ref: str, request: ExecRequest, keys: DetachKeys) -> int:
    """A login shell, as `run_terminal`. Raises `NoShell` with what to do then."""
    try:
        return await run_terminal(output, engine, ref, request, Joining(keys, announce=True))
    except NoShell as error:
        hint = f"squib exec -it {ref} PROGRAM runs another program on this terminal"
        raise NoShell(error.message, hint=hint, detail=error.detail) from None


async def run_terminal(
    output: Output, engine: EngineClient, ref: str, what: ExecRequest | Attach, joining: Joining
) -> int:
    """Join our terminal to one in the VM ``ref`` until its command ends, and return its status; 0 if it is detached.

    Our terminal is raw meanwhile, and afterwards what it was. A connection that is lost is made again. If this process
    is ended the session goes on.

    Raises as `open_terminal`; `EngineUnavailable` if a lost connection does not come back.
    """
    async with open_terminal(engine, ref, what) as terminal:
        size = what.size if isinstance(what, Attach) else what.pty
        if joining.announce and joining.keys.sequence:
            output.note(f"VM {ref}: detach with {joining.keys.text}")
        joined = _Joined(output, engine, ref, terminal, size, joining)
        again = f"squib attach {ref} {terminal.id}"
        try:
            end = await joined.run()
        except (asyncio.CancelledError, OSError):
            if joining.stays and takes_more(sys.stderr.fileno()):
                with contextlib.suppress(OSError):  # the terminal may be gone
                    output.note(f"detached; to go on: {again}")
            raise
    if end is None:
        output.note(f"detached; to go on: {again}")
        return 0
    if end.timed_out:
        output.note("the command was killed: its timeout has passed")
    elif end.signal is not None:
        await _tell_if_stopped(output, engine, ref)
    return end.exit_code


async def _tell_if_stopped(output: Output, engine: EngineClient, ref: str) -> None:
    """Say so if the VM does not run any more: what ended the command may have been that."""
    with contextlib.suppress(SquibError):
        vm = await engine.vm(ref)
        if vm.state is not VMState.RUNNING:
            output.note(f"VM {ref} is {vm.state}")


class _Joined:
    """One run of `run_terminal`."""

    def __init__(
        self,
        output: Output,
        engine: EngineClient,
        ref: str,
        terminal: Terminal,
        size: PtySize | None,
        joining: Joining,
    ) -> None:
        self._output = output
        self._engine = engine
        self._ref = ref
        self._terminal = terminal
        self._size = size
        self._joining = joining
        self._in, self._out = sys.stdin.fileno(), sys.stdout.fileno()
        self._mode = RawMode(self._in)
        self._modes = ModeTracker()
        self._replay = ReplayFilter()
        self._typed: asyncio.Queue[bytes] = asyncio.Queue(_MAX_TYPED_CHUNKS)
        self._unsent = b""
        self._resized = asyncio.Event()
        self._resized.set()  # the size may have changed since it was asked for
        self._lost_at = 0.0

    async def run(self) -> CommandEnd | None:
        """Until the command ends, or until it is detached: then ``None``."""
        with never_blocking(self._out) as self._out, self._mode, ended_by_broken_pipe(self._out), self._watching():
            typing = asyncio.create_task(self._read_keys(), name="keys")
            showing = asyncio.create_task(self._show_all(), name="output")
            ended = False
            try:
                await asyncio.wait([typing, showing], return_when=asyncio.FIRST_COMPLETED)
                if showing.done():
                    end = showing.result()
                    ended = end.signal is None  # else it had no time to tidy up
                    return end
                return typing.result()
            finally:
                typing.cancel()
                showing.cancel()
                if not ended:
                    self._undo()
                self._mode.leave()  # before anything that takes its time
                await asyncio.wait([typing, showing])

    # --- input --------------------------------------------------------------------------------------------------

    async def _read_keys(self) -> None:
        """Returns when our keys are typed, or the terminal is gone."""
        matcher = KeyMatcher(self._joining.keys.sequence)
        with contextlib.suppress(OSError):
            async for chunk in read_chunks(self._in):
                passed, found = matcher.feed(chunk)
                if passed:
                    await self._typed.put(passed)
                if found:
                    break
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_KEYS_S):
                await self._typed.join()

    async def _send_keys(self, terminal: Terminal) -> None:
        with contextlib.suppress(EngineError):  # whoever reads the output is told too
            while True:
                self._unsent = self._unsent or await self._typed.get()
                await terminal.send(self._unsent)
                self._unsent = b""
                self._typed.task_done()

    async def _send_sizes(self, terminal: Terminal) -> None:
        with contextlib.suppress(EngineError):
            while True:
                await self._resized.wait()
                self._resized.clear()
                size = terminal_size(self._in)
                if size != self._size:
                    await terminal.resize(size.rows, size.cols)
                self._size = size

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """Follow the size of our window; and make the terminal raw again after somebody has stopped us and let us go
        on.
        """

        def on_continued() -> None:
            self._mode.enter()
            self._resized.set()

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGWINCH, self._resized.set)
        loop.add_signal_handler(signal.SIGCONT, on_continued)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGCONT)
            loop.remove_signal_handler(signal.SIGWINCH)

    # --- output -------------------------------------------------------------------------------------------------

    async def _show_all(self) -> CommandEnd:
        """Show all output, over as many connections as it takes."""
        loop = asyncio.get_running_loop()
        terminal = self._terminal
        async with contextlib.AsyncExitStack() as stack:
            while True:
                began = loop.time()
                try:
                    return await self._show(terminal)
                except (EngineError, AgentError) as error:
                    if loop.time() - began > _LASTING_S or not self._lost_at:
                        self._lost_at = loop.time()
                    if self._output.verbose:
                        self._say(error.message)
                    await stack.aclose()
                    terminal = await stack.enter_async_context(self._attached_again(terminal))

    async def _show(self, terminal: Terminal) -> CommandEnd:
        helpers = [
            asyncio.create_task(self._send_keys(terminal), name="send keys"),
            asyncio.create_task(self._send_sizes(terminal), name="send sizes"),
        ]
        try:
            async for data in terminal.output():
                self._modes.feed(data)
                await write_all(self._out, self._without_old_queries(data, terminal.offset - len(data)))
            return terminal.end
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.wait(helpers)

    def _without_old_queries(self, data: bytes, offset: int) -> bytes:
        past = max(0, self._joining.past_until - offset)
        if not past:
            return data
        shown = self._replay.feed(data[:past])
        return shown if past > len(data) else shown + self._replay.end() + data[past:]

    def _undo(self) -> None:
        """Put our terminal back to how it was before a program changed it that cannot do so any more."""
        if os.isatty(self._out):
            with contextlib.suppress(OSError):
                os.write(self._out, self._modes.undo() + b"\r\n")

    # --- a connection that is lost ------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _attached_again(self, terminal: Terminal) -> AsyncIterator[Terminal]:
        loop = asyncio.get_running_loop()
        said = False

        def say() -> None:
            nonlocal said
            said = True
            self._say("the connection is lost; trying to join again …")

        notice = loop.call_at(self._lost_at + _PATIENCE_S, say)
        async with contextlib.AsyncExitStack() as stack:
            try:
                found = await self._find_again(stack, terminal)
            finally:
                notice.cancel()
            if said or self._output.verbose:
                self._say("joined again")
            yield found

    async def _find_again(self, stack: contextlib.AsyncExitStack, terminal: Terminal) -> Terminal:
        deadline = self._lost_at + COME_BACK_S
        loop = asyncio.get_running_loop()
        while True:
            self._size = terminal_size(self._in)
            attach = Attach(terminal.id, terminal.offset, self._size)
            try:
                async with asyncio.timeout_at(deadline):
                    return await stack.enter_async_context(open_terminal(self._engine, self._ref, attach))
            except (EngineError, AgentError, TimeoutError) as error:
                if loop.time() + _TRY_EVERY_S >= deadline:
                    raise self._gone(terminal.id, error) from error
            await asyncio.sleep(_TRY_EVERY_S)

    def _gone(self, process_id: str, error: Exception) -> EngineUnavailable:
        return EngineUnavailable(
            f"the connection to VM {self._ref} was lost and did not come back within {COME_BACK_S:g} s",
            detail=str(error) or type(error).__name__,
            hint=f"squib attach {self._ref} {process_id}" if self._joining.stays else "squib version shows the engine",
        )

    def _say(self, text: str) -> None:
        """A note amid the output."""
        self._mode.leave()
        if sys.stderr.isatty():
            sys.stderr.write("\n")
        self._output.note(text)
        self._mode.enter()
