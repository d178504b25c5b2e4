"""Attach the terminal of this process to a terminal in a VM."""

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
from squib.cli.terminal.streams import ended_by_broken_pipe, is_writable, opened_nonblocking, read_chunks, write_all
from squib.errors import AgentError, EngineError, EngineUnavailable, InvalidArgument, NoShell, SquibError
from squib.models import ExecRequest, PtySize, VMState
from squib.protocol.frames import CommandEnd
from squib.sdk.client import EngineClient
from squib.sdk.terminal import Attach, Terminal, open_terminal

RECONNECT_TIMEOUT_S = 15.0
"""How long to try to restore a lost connection."""
_QUIET_S = 1.0
_RETRY_S = 0.25
_STABLE_S = 5.0
"""After a connection has lasted this long, the next loss gets the full timeout again."""
_LAST_KEYS_S = 0.5
_MAX_TYPED_CHUNKS = 64


@dataclass(frozen=True)
class AttachOptions:
    """How to attach to a terminal.

    ``keys`` detach. Output before the byte ``past_until`` is a replay. With ``stays``, the terminal keeps running
    without this client and can be attached to again. With ``announce``, the detach keys are printed first.
    """

    keys: DetachKeys
    past_until: int = 0
    stays: bool = True
    announce: bool = False


def check_terminal(output: Output, *, hint: str) -> None:
    """Check that standard input is a terminal. Raises `InvalidArgument`."""
    if output.json:
        raise InvalidArgument("--json cannot be used with a terminal", hint="omit --json")
    if not sys.stdin.isatty():
        raise InvalidArgument("standard input is not a terminal", hint=hint)


async def open_shell(output: Output, engine: EngineClient, ref: str, request: ExecRequest, keys: DetachKeys) -> int:
    """Open a login shell, like `run_terminal`.

    Raises `NoShell` with a hint.
    """
    try:
        return await run_terminal(output, engine, ref, request, AttachOptions(keys, announce=True))
    except NoShell as error:
        hint = f"squib exec -it {ref} PROGRAM runs another program on this terminal"
        raise NoShell(error.message, hint=hint, detail=error.detail) from None


async def run_terminal(
    output: Output, engine: EngineClient, ref: str, what: ExecRequest | Attach, options: AttachOptions
) -> int:
    """Attach to a terminal in the VM ``ref``; return the command's status.

    Returns 0 if the user detaches. This terminal is raw meanwhile, and restored afterwards. A lost connection is
    restored. If this process ends, the command keeps running.

    Raises as `open_terminal`; `EngineUnavailable` if a lost connection does not come back.
    """
    async with open_terminal(engine, ref, what) as terminal:
        size = what.size if isinstance(what, Attach) else what.pty
        if options.announce and options.keys.sequence:
            output.note(f"VM {ref}: detach with {options.keys.text}")
        attachment = _Attachment(output, engine, ref, terminal, size, options)
        again = f"squib attach {ref} {terminal.id}"
        try:
            end = await attachment.run()
        except SquibError:
            raise
        except (asyncio.CancelledError, OSError):
            if options.stays and is_writable(sys.stderr.fileno()):
                with contextlib.suppress(OSError):  # the terminal may be gone
                    output.note(f"detached; reattach with: {again}")
            raise
    if end is None:
        output.note(f"detached; reattach with: {again}")
        return 0
    if end.timed_out:
        output.note("the command timed out and was killed")
    elif end.signal is not None:
        await _note_if_stopped(output, engine, ref)
    return end.exit_code


async def _note_if_stopped(output: Output, engine: EngineClient, ref: str) -> None:
    """Print the VM's state if the VM is not running.

    The end of the VM may be why the command ended.
    """
    with contextlib.suppress(SquibError):
        vm = await engine.vm(ref)
        if vm.state is not VMState.RUNNING:
            output.note(f"VM {ref} is {vm.state}")


class _Attachment:
    """One run of `run_terminal`."""

    def __init__(
        self,
        output: Output,
        engine: EngineClient,
        ref: str,
        terminal: Terminal,
        size: PtySize | None,
        options: AttachOptions,
    ) -> None:
        self._output = output
        self._engine = engine
        self._ref = ref
        self._terminal = terminal
        self._size = size
        self._options = options
        self._in, self._out = sys.stdin.fileno(), sys.stdout.fileno()
        self._mode = RawMode(self._in)
        self._modes = ModeTracker()
        self._replay = ReplayFilter()
        self._typed: asyncio.Queue[bytes] = asyncio.Queue(_MAX_TYPED_CHUNKS)
        self._resized = asyncio.Event()
        self._resized.set()  # the size may have changed since it was read
        self._lost_at = 0.0

    async def run(self) -> CommandEnd | None:
        """Run until the command ends; return ``None`` if the user detaches."""
        with opened_nonblocking(self._out) as self._out, self._mode, ended_by_broken_pipe(self._out), self._watching():
            typing = asyncio.create_task(self._read_keys(), name="keys")
            showing = asyncio.create_task(self._show_all(), name="output")
            ended = False
            try:
                await asyncio.wait([typing, showing], return_when=asyncio.FIRST_COMPLETED)
                if showing.done():
                    end = showing.result()
                    ended = end.signal is None  # a killed program could not reset the terminal
                    return end
                return typing.result()
            finally:
                typing.cancel()
                showing.cancel()
                if not ended:
                    self._undo()
                self._mode.leave()  # before anything slow
                await asyncio.wait([typing, showing])

    # --- input --------------------------------------------------------------------------------------------------

    async def _read_keys(self) -> None:
        """Read input until the detach keys come or the terminal closes."""
        matcher = KeyMatcher(self._options.keys.sequence)
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

    async def _send_keys(self, terminal: Terminal, again: bytes) -> None:
        """Send what was typed, and first what was sent to a lost connection and not received."""
        with contextlib.suppress(EngineError):  # reading the output fails with the same error
            await terminal.send(again)
            while True:
                keys = await self._typed.get()
                try:
                    await terminal.send(keys)
                finally:
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
        """Follow the window size; restore raw mode after SIGCONT."""

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
        """Show all output, and reconnect as often as needed."""
        loop = asyncio.get_running_loop()
        terminal, unreceived = self._terminal, b""
        async with contextlib.AsyncExitStack() as stack:
            while True:
                began = loop.time()
                try:
                    return await self._show(terminal, unreceived)
                except (EngineError, AgentError) as error:
                    if loop.time() - began > _STABLE_S or not self._lost_at:
                        self._lost_at = loop.time()
                    if self._output.verbose:
                        self._say(error.message)
                    await stack.aclose()
                    unreceived = terminal.unreceived
                    terminal = await stack.enter_async_context(self._attached_again(terminal))

    async def _show(self, terminal: Terminal, unreceived: bytes) -> CommandEnd:
        helpers = [
            asyncio.create_task(self._send_keys(terminal, unreceived), name="send keys"),
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
        past = max(0, self._options.past_until - offset)
        if not past:
            return data
        shown = self._replay.feed(data[:past])
        return shown if past > len(data) else shown + self._replay.end() + data[past:]

    def _undo(self) -> None:
        """Reset the terminal modes that a program left changed."""
        if os.isatty(self._out):
            with contextlib.suppress(OSError):
                os.write(self._out, self._modes.undo() + b"\r\n")

    # --- reconnecting -------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _attached_again(self, terminal: Terminal) -> AsyncIterator[Terminal]:
        loop = asyncio.get_running_loop()
        said = False

        def say() -> None:
            nonlocal said
            said = True
            self._say("connection lost; reconnecting …")

        notice = loop.call_at(self._lost_at + _QUIET_S, say)
        async with contextlib.AsyncExitStack() as stack:
            try:
                found = await self._find_again(stack, terminal)
            finally:
                notice.cancel()
            if said or self._output.verbose:
                self._say("reconnected")
            yield found

    async def _find_again(self, stack: contextlib.AsyncExitStack, terminal: Terminal) -> Terminal:
        deadline = self._lost_at + RECONNECT_TIMEOUT_S
        loop = asyncio.get_running_loop()
        while True:
            self._size = terminal_size(self._in)
            attach = Attach(terminal.id, terminal.offset, self._size)
            try:
                async with asyncio.timeout_at(deadline):
                    return await stack.enter_async_context(open_terminal(self._engine, self._ref, attach))
            except (EngineError, AgentError, TimeoutError) as error:
                if loop.time() + _RETRY_S >= deadline:
                    raise self._gone(terminal.id, error) from error
            await asyncio.sleep(_RETRY_S)

    def _gone(self, process_id: str, error: Exception) -> EngineUnavailable:
        return EngineUnavailable(
            f"the connection to VM {self._ref} was lost and could not be restored within {RECONNECT_TIMEOUT_S:g} s",
            detail=str(error) or type(error).__name__,
            hint=f"squib attach {self._ref} {process_id}" if self._options.stays else "squib version",
        )

    def _say(self, text: str) -> None:
        """Print a note between the output."""
        self._mode.leave()
        if sys.stderr.isatty():
            sys.stderr.write("\n")
        self._output.note(text)
        self._mode.enter()
