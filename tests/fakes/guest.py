"""A VM in this process: an agent without a VMM. Tests can inspect its commands, which need no processes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from squib.core.engine import Engine, RunningVM
from squib.core.lifecycle.create import create_vm
from squib.guest.agent import AgentClient
from squib.host import sockets
from squib.models import VMConfig, VMState
from tests.fakes.agent import FakeAgent
from tests.fakes.driver import agent_socket


class NoMachine:
    """A machine without a VMM."""

    async def detach(self) -> None:
        """Do nothing: there is no connection to close."""

    async def pause(self) -> None:
        """A fake guest has no vCPUs to stop: its agent keeps running."""

    async def resume(self) -> None:
        """Do nothing: the agent was not stopped."""


def connector(path: Path) -> Callable[[], Awaitable[socket.socket]]:
    """Return what `AgentClient` takes, for an agent that listens at ``path``."""

    async def connect() -> socket.socket:
        return sockets.connect(path, blocking=False)

    return connect


@contextlib.asynccontextmanager
async def serve_agent(path: Path, agent: FakeAgent) -> AsyncIterator[None]:
    """An agent that answers at ``path``."""
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        connections.add(task)
        try:
            await agent.serve(reader, writer)
        finally:
            writer.transport.abort()

    server = await asyncio.start_unix_server(serve, sock=sockets.listen(path))
    try:
        yield
    finally:
        server.close()
        for task in connections:
            task.cancel()
        if connections:
            await asyncio.wait(connections)
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def running_vm(engine: Engine, config: VMConfig, name: str = "web") -> AsyncIterator[FakeAgent]:
    """A VM that runs, and its agent."""
    agent = FakeAgent()
    record = await create_vm(engine, config.model_copy(update={"name": name}), start=False, on_progress=lambda _: None)
    folder = engine.driver_folder(record)
    folder.mkdir()
    path = agent_socket(folder)
    async with serve_agent(path, agent):
        client = AgentClient(connector(path))
        await client.connect(timeout_s=5)
        engine.running[record.vm_id] = RunningVM(NoMachine(), client)  # type: ignore[arg-type]
        assert engine.store.change_state(record.vm_id, expected={VMState.CREATED}, to=VMState.RUNNING)
        try:
            yield agent
        finally:
            del engine.running[record.vm_id]
            engine.store.change_state(record.vm_id, expected={VMState.RUNNING}, to=VMState.STOPPED)
            await client.close()
