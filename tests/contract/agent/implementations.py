"""The agents that the suite runs against: the real one, serving on a unix socket of this host, and the fake one."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from squib.errors import NoSuchProcess
from squib.guest.agent import AGENT_BINARY, AgentClient, Identity
from tests.contract.agent.http2 import RawSession
from tests.fakes.agent import FakeAgent
from tests.fakes.files import FakeFiles
from tests.fakes.guest import connector, serve_agent

TIMEOUT_S = 10.0
_PYTHON = f"#!{sys.executable} -IS\n"
_SCRIPTS = {
    "exit": "#!/bin/sh\nexit $1\n",
    "err": '#!/bin/sh\necho "$@" >&2\n',
    "sleep": "#!/bin/sh\nexec /bin/sleep 1000\n",
    "stubborn": "#!/bin/sh\ntrap '' TERM\nexec /bin/sleep 1000\n",
    "env": f"{_PYTHON}import json, os\nprint(json.dumps(dict(os.environ)), end='')\n",
    "flood": f"{_PYTHON}import sys\nfor n in range(int(sys.argv[1])):\n    sys.stdout.write('%01023d\\n' % n)\n",
    "spam": f"{_PYTHON}import os\nwhile True:\n    os.write(1, b'y\\n' * 32768)\n",
    "tty": _PYTHON
    + """
import os, re, signal, sys
def resized(*_):
    size = os.get_terminal_size(0)
    os.write(1, b"[%dx%d]" % (size.lines, size.columns))
signal.signal(signal.SIGWINCH, resized)
os.write(1, b"$ ")
while line := sys.stdin.buffer.readline():
    if found := re.fullmatch(rb"exit ([0-9]+)\\n", line):
        sys.exit(int(found[1]))
""",
}
"""The programs of `tests.fakes.processes`, for a host that has none of that name or another one."""


def make_client(socket_path: Path) -> AgentClient:
    """Return a client of the agent that listens at ``socket_path``."""
    return AgentClient(connector(socket_path))


@dataclass
class Implementation:
    """A running agent, fresh for each test."""

    is_real: bool
    socket_path: Path
    folder: Path
    """A directory for the files of the test. A path below it means the same to both agents."""
    home: Path
    """The home directory of every account."""
    env: dict[str, str]
    """What setup must set so that commands find their programs."""
    client: AgentClient
    ended: asyncio.Event
    """Set when the agent has powered off."""

    @asynccontextmanager
    async def session(self) -> AsyncIterator[RawSession]:
        """Open a connection and an HTTP/2 session that hides nothing."""
        async with asyncio.timeout(TIMEOUT_S):
            session = await RawSession.open(self.socket_path)
            try:
                yield session
            finally:
                await session.close()


@asynccontextmanager
async def fake_agent(folder: Path, *, has_shell: bool = True) -> AsyncIterator[tuple[Path, asyncio.Event]]:
    """Serve a fake agent; its socket, and the event that it powers off."""
    home = str(folder / "home")
    agent = FakeAgent(
        bare=True,
        files=FakeFiles(Path("/")),
        has_shell=has_shell,
        no_shell=not has_shell,
        users={"root": home, "me": home},
    )
    async with serve_agent(folder / "agent.sock", agent):
        yield folder / "agent.sock", agent.poweroff


@asynccontextmanager
async def real_agent(folder: Path, *wrapper: str) -> AsyncIterator[tuple[Path, asyncio.Event]]:
    """Start the real agent, by the command ``wrapper`` if one is given; its socket, and the event that it has ended."""
    socket_path = folder / "agent.sock"
    agent = await asyncio.create_subprocess_exec(
        *(*wrapper, str(AGENT_BINARY), "serve-unix", str(socket_path), str(folder)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    ended = asyncio.Event()

    async def wait() -> None:
        await agent.wait()
        ended.set()

    waiting = asyncio.create_task(wait())
    try:
        assert agent.stdout
        async with asyncio.timeout(TIMEOUT_S):
            assert await agent.stdout.readline() == b"squib-agent: ready\n"
        yield socket_path, ended
    finally:
        assert agent.stdin
        agent.stdin.close()
        async with asyncio.timeout(TIMEOUT_S):
            await waiting


@asynccontextmanager
async def implementation(kind: str, folder: Path, wrapper: Sequence[str] = ()) -> AsyncIterator[Implementation]:
    """Run an agent of this kind, ``real`` or ``fake``, and give it its environment."""
    work, home = folder / "work", folder / "home"
    work.mkdir()
    home.mkdir()
    env = {"PATH": f"{_install_programs(folder)}:{os.defpath}", "LANG": "C.UTF-8"}
    _write_accounts(folder, home)
    running = fake_agent(folder) if kind == "fake" else real_agent(folder, *wrapper)
    async with running as (socket_path, ended):
        client = make_client(socket_path)
        await client.connect(timeout_s=TIMEOUT_S)
        await client.setup(Identity("vm-1", "vm", "0" * 32), env=env)
        try:
            yield Implementation(kind == "real", socket_path, work, home, env, client, ended)
        finally:
            if not ended.is_set():
                await _kill_all(client)
            await client.close()


async def _kill_all(client: AgentClient) -> None:
    await client.connect(timeout_s=TIMEOUT_S)
    for process in await client.processes():
        with suppress(NoSuchProcess):  # in the foreground, and ended with its session
            await client.kill(process.id)


def _install_programs(folder: Path) -> Path:
    programs = folder / "bin"
    programs.mkdir()
    for name, text in _SCRIPTS.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    for name in ("true", "false", "echo", "cat", "pwd"):
        found = shutil.which(name)
        assert found
        (programs / name).symlink_to(found)
    return programs


def _write_accounts(folder: Path, home: Path) -> None:
    """Accounts with the identity of this user, so that everything runs without root too."""
    uid, gid = os.getuid(), os.getgid()
    etc = folder / "etc"
    etc.mkdir()
    tty = folder / "bin" / "tty"
    (etc / "passwd").write_text(
        f"root:x:{uid}:{gid}:root:{home}:{tty}\nme:x:{uid}:{gid}::{home}:{tty}\nnobody:x:65534:65534::/:{tty}\n"
    )
    (etc / "group").write_text(f"root:x:{gid}:\nnogroup:x:65534:\nextra:x:4242:me,nobody\n")
