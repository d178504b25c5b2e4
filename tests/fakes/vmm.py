"""A fake VMM: a process that serves a `FakeAgent` on an inherited socket.

``vmm.py SOCKET_FD BEHAVIOUR``, see `tests.fakes.driver.FakeDriver`.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fakes.agent import FakeAgent


async def main() -> None:
    listener, behaviour = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
    if behaviour == "--die":
        sys.exit(3)
    if behaviour == "--hang":
        await asyncio.Event().wait()
    agent = FakeAgent(ignore_poweroff=behaviour == "--deaf")
    server = await asyncio.start_unix_server(agent.serve, sock=listener)
    await agent.poweroff.wait()
    server.close()


asyncio.run(main())
