"""Process sessions: commands that are there, whoever started them. (`squib.core.guestio.exec` starts them.)

All raise `WrongState` if the VM does not run, `NotFound`, and `AgentUnreachable`; those with an id `NoSuchProcess`.
"""

from __future__ import annotations

from squib.core.engine import Engine
from squib.core.guestio.exec import Command, agent_of, in_time
from squib.guest.http2 import Body
from squib.models import ProcessInfo, PtySize


async def list_processes(engine: Engine, ref: str) -> list[ProcessInfo]:
    """The processes that run, and those of the background that have ended and are kept; oldest first."""
    return await agent_of(engine, ref).processes()


async def get_process(engine: Engine, ref: str, process_id: str) -> ProcessInfo:
    """One of them."""
    return await agent_of(engine, ref).process(process_id)


async def attach(
    engine: Engine, ref: str, process_id: str, *, stdout: int = 0, stderr: int = 0, none: bool = False
) -> Command:
    """Attach to a process: `squib.core.guestio.exec.stream` yields its output from these offsets on, and its end.

    Output older than what is kept is skipped. With ``none`` only the end is reported. Detaching does not affect it.
    """
    work = agent_of(engine, ref).output(process_id, stdout=stdout, stderr=stderr, none=none)
    response = await in_time(work, ref, "show the output")
    return Command(engine, engine.store.get_vm(ref).vm_id, response, timeout_s=None)


async def write_stdin(engine: Engine, ref: str, process_id: str, body: Body, *, close: bool) -> int:
    """Feed the standard input of a process; returns the bytes written. Raises `StdinClosed` too."""
    return await agent_of(engine, ref).write_stdin(process_id, body, close=close)


async def send_signal(engine: Engine, ref: str, process_id: str, signal: int) -> None:
    """Send a signal to a process's group; in a terminal, to the group in its foreground."""
    await agent_of(engine, ref).signal(process_id, signal)


async def resize(engine: Engine, ref: str, process_id: str, size: PtySize) -> None:
    """Set the size of a process's terminal. Raises `NoTerminal` too."""
    await agent_of(engine, ref).resize(process_id, size)


async def kill_process(engine: Engine, ref: str, process_id: str) -> None:
    """Kill a process with all its descendants and forget it; returns when they are gone."""
    await agent_of(engine, ref).kill(process_id)
