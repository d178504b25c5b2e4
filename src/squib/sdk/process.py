"""`Process`, the synchronous version of `squib.AsyncProcess`."""

from __future__ import annotations

from collections.abc import Iterator
from signal import SIGKILL
from types import TracebackType
from typing import Self

from squib.models import ProcessInfo
from squib.protocol.frames import CommandEnd
from squib.sdk.aio_process import AsyncProcess, AsyncStdin, OutputChunk
from squib.sdk.portal import Portal


class Stdin:
    """A command's standard input. The synchronous version of `AsyncStdin`."""

    def __init__(self, portal: Portal, stdin: AsyncStdin) -> None:
        self._portal = portal
        self._stdin = stdin

    def write(self, data: bytes | str) -> None:
        """See `AsyncStdin.write`."""
        self._portal.run(self._stdin.write(data))

    def close(self) -> None:
        """See `AsyncStdin.close`."""
        self._portal.run(self._stdin.close())


class Process:
    """A background command. Get one from `VM.spawn` or `VM.process`.

        with vm.spawn("make -j4") as process:  # kills the command on exit, if it still runs
            for chunk in process:
                print(chunk.stream, chunk.data)
            print(process.wait().exit_code)

    See `AsyncProcess`. The methods are thread-safe: one thread can iterate while another writes.
    """

    def __init__(self, portal: Portal, process: AsyncProcess) -> None:
        self._portal = portal
        self._process = process
        self._stdin = Stdin(portal, process.stdin)

    def __repr__(self) -> str:
        return repr(self._process).replace("AsyncProcess", "Process", 1)

    @property
    def id(self) -> str:
        """The process ID in the VM, such as ``p3``."""
        return self._process.id

    @property
    def pid(self) -> int:
        """The PID of the command's first process, in the guest."""
        return self._process.pid

    @property
    def info(self) -> ProcessInfo:
        """The cached process details; `refresh` updates them."""
        return self._process.info

    @property
    def stdin(self) -> Stdin:
        """The command's standard input."""
        return self._stdin

    def refresh(self) -> ProcessInfo:
        """See `AsyncProcess.refresh`."""
        return self._portal.run(self._process.refresh())

    def __iter__(self) -> Iterator[OutputChunk]:
        return self.output()

    def output(self, stdout_offset: int = 0, stderr_offset: int = 0) -> Iterator[OutputChunk]:
        """See `AsyncProcess.output`. Leaving the loop detaches."""
        return self._portal.iterate(self._process.output(stdout_offset, stderr_offset))

    def wait(self, timeout: float | None = None) -> CommandEnd:
        """See `AsyncProcess.wait`."""
        return self._portal.run(self._process.wait(timeout))

    def signal(self, number: int) -> None:
        """See `AsyncProcess.signal`."""
        self._portal.run(self._process.signal(number))

    def kill(self, signal: int = SIGKILL) -> None:
        """See `AsyncProcess.kill`."""
        self._portal.run(self._process.kill(signal))

    def resize(self, rows: int, cols: int) -> None:
        """See `AsyncProcess.resize`."""
        self._portal.run(self._process.resize(rows, cols))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._portal.run(self._process.__aexit__(kind, error, trace))
