"""A fake VMM: a process that serves a `FakeAgent` on an inherited socket.

``vmm.py SOCKET_FD BEHAVIOUR``, see `tests.fakes.driver.FakeDriver`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fakes.agent import FakeAgent
from tests.fakes.wire import Session, Stream

PANICKED = 4
"""The exit status of a VMM whose guest's kernel panicked."""


class PanicsWhenSetUp(FakeAgent):
    """It answers the host's first request, but not the second."""

    async def answer(self, stream: Stream, session: Session, stream_id: int) -> None:
        if stream.method == "POST":
            os._exit(PANICKED)
        await super().answer(stream, session, stream_id)


async def main() -> None:
    listener, behaviour = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
    if behaviour == "--die":
        sys.exit(3)
    if behaviour == "--panic":
        sys.exit(PANICKED)
    if behaviour == "--hang":
        await asyncio.Event().wait()
    kind = PanicsWhenSetUp if behaviour == "--panic-when-set-up" else FakeAgent
    agent = kind(ignore_poweroff=behaviour == "--deaf")
    server = await asyncio.start_unix_server(agent.serve, sock=listener)
    await agent.poweroff.wait()
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
