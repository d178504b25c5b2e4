"""Processes: the commands that any client has started in a VM.

All functions raise `WrongState` if the VM does not run, `NotFound` and `AgentUnreachable`; those with a process ID also
raise `NoSuchProcess`.
"""

from __future__ import annotations

from squib.core.engine import Engine
from squib.core.guestio.exec import Command, agent_of, within_timeout
from squib.guest.http2 import Body
from squib.models import ProcessInfo, PtySize


async def list_processes(engine: Engine, ref: str) -> list[ProcessInfo]:
    """List processes, oldest first.

    The list contains running processes, and ended background processes that the guest still keeps.
    """
    return await agent_of(engine, ref).processes()


async def get_process(engine: Engine, ref: str, process_id: str) -> ProcessInfo:
    """Return one process."""
    return await agent_of(engine, ref).process(process_id)


async def attach(
    engine: Engine, ref: str, process_id: str, *, stdout: int = 0, stderr: int = 0, none: bool = False
) -> Command:
    """Attach to a process: follow its output from these offsets to its end.

    `squib.core.guestio.exec.stream` yields the frames. Output that the guest no longer keeps is skipped. With ``none``,
    only the end is reported. Detaching does not affect the process.
    """
    work = agent_of(engine, ref).output(process_id, stdout=stdout, stderr=stderr, none=none)
    response = await within_timeout(work, ref, "show the output")
    return Command(engine, engine.store.get_vm(ref).vm_id, response, timeout_s=None)


async def write_stdin(engine: Engine, ref: str, process_id: str, body: Body, *, close: bool) -> int:
    """Write to the standard input of a process; return the bytes written.

    Also raises `StdinClosed`.
    """
    return await agent_of(engine, ref).write_stdin(process_id, body, close=close)


async def send_signal(engine: Engine, ref: str, process_id: str, signal: int) -> None:
    """Send a signal to a process group.

    If the process has a terminal, the signal goes to the terminal's foreground process group.
    """
    await agent_of(engine, ref).signal(process_id, signal)


async def resize(engine: Engine, ref: str, process_id: str, size: PtySize) -> None:
    """Set the size of a process's terminal. Also raises `NoTerminal`."""
    await agent_of(engine, ref).resize(process_id, size)


async def kill_process(engine: Engine, ref: str, process_id: str) -> None:
    """Kill a process and its descendants, and forget the process.

    Returns when they have ended.
    """
    await agent_of(engine, ref).kill(process_id)
