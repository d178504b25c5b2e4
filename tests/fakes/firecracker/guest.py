"""The guest of a stub VMM: a fake agent behind vsock, in a thread of its own.

A guest that is paused answers nothing: its thread waits. Before the agent listens, connections wait too, as they do
until a real guest's kernel has its vsock driver.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.fakes.firecracker.process import Context, load_guest, write_all
from tests.fakes.firecracker.settings import die

if TYPE_CHECKING:
    import asyncio

AGENT_PORT = 1024
_FIRST_PORT = 1 << 30
"""The first port of the host's end, as in Firecracker's muxer."""
BEHAVIOURS = ("ok", "hang", "no-agent", "panic", "panic-when-set-up", "deaf", "crash")
"""How guests behave.

``hang`` accepts connections and says nothing; ``no-agent`` has nothing listening; ``panic`` and ``panic-when-set-up``
panic and restart; ``deaf`` does not power off; ``crash`` makes the VMM end with status 1.

A restart ends the VMM with status 0, if the kernel's command line has ``reboot=k``. Otherwise the guest hangs. It
restarts after a panic only with ``panic=``, and instead of a power-off only with ``squib.poweroff=restart``.
"""


class Guest:
    """A guest with this vsock listener and console; ``on_exit`` is called with the VMM's exit status.

    One that is ``restored`` has booted before, and stands still. It takes a connection from ``busy_port`` for one of
    before.
    """

    def __init__(
        self,
        context: Context,
        listener: socket.socket | None,
        console: int,
        boot_args: list[str],
        on_exit: Callable[[int], None],
        *,
        restored: bool = False,
        busy_port: int = 0,
    ) -> None:
        self._context, self._listener, self._console, self._on_exit = context, listener, console, on_exit
        self._boot_args = boot_args
        self._behaviour = context.settings.values["guest"]
        self.port = _FIRST_PORT - 1
        """The host's end of the last connection."""
        self._busy_port = busy_port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gated = False
        self._restored = self._loses_connections = restored
        self._links: set[asyncio.StreamWriter] = set()
        self._running, self._frozen = threading.Event(), threading.Event()
        if not restored:
            self._running.set()

    def start(self) -> None:
        """Boot."""
        threading.Thread(target=self._run, daemon=True, name="fc_vcpu 0").start()

    def pause(self) -> None:
        """Stop the guest; return when it does nothing any more."""
        if not self._running.is_set():
            return
        self._running.clear()
        self._frozen.clear()
        if self._loop:
            self._loop.call_soon_threadsafe(self._freeze)
            self._frozen.wait()

    def resume(self) -> None:
        """Let the guest go on."""
        self._running.set()
        if self._loop and self._loses_connections:
            self._loop.call_soon_threadsafe(self._lose_connections)
        if self._loop and self._context.settings.values["gates_vsock"]:
            self._loop.call_soon_threadsafe(self._gate)

    def lose_connections(self) -> None:
        """End all connections when the guest goes on, and the first new one: saving it has sent it an event for that.

        A real guest may accept connections before it has noticed the event.
        """
        self._loses_connections = True

    def _lose_connections(self) -> None:
        for link in self._links:
            link.transport.abort()

    def _gate(self) -> None:
        self._gated = True
        for link in self._links:
            link.transport.pause_reading()  # type: ignore[attr-defined]

    def ctrl_alt_del(self) -> None:
        """Press the keys that restart a guest."""
        if self._loop and self._behaviour != "deaf":
            self._loop.call_soon_threadsafe(self._restart)

    def _freeze(self) -> None:
        self._frozen.set()
        self._running.wait()

    def _print(self, text: str) -> None:
        if "console=ttyS0" in self._boot_args:
            write_all(self._console, text.encode() + b"\r\n")

    def _run(self) -> None:
        if not self._restored and not self._boot():
            return
        load_guest(self._context.settings)
        import asyncio

        asyncio.run(self._serve())

    def _boot(self) -> bool:
        """Begin to boot; return whether the guest gets beyond its kernel."""
        self._print("[    0.000000] Linux version 6.0-fake")
        if self._behaviour == "crash":
            self._on_exit(1)
        elif self._behaviour == "panic":
            self._panic()
        return self._behaviour not in ("crash", "panic")

    def _panic(self) -> None:
        self._print("[    0.500000] Kernel panic - not syncing: fake")
        if any(word.startswith("panic=") and word != "panic=0" for word in self._boot_args):
            self._restart()

    def _restart(self) -> None:
        if "reboot=k" in self._boot_args:
            self._print("[    1.000000] reboot: Restarting system")
            self._on_exit(0)

    async def _serve(self) -> None:
        import asyncio

        from tests.fakes.agent import FakeAgent

        guest = self

        class PanicsWhenSetUp(FakeAgent):
            async def answer(self, stream: Any, session: Any, stream_id: int) -> None:
                if stream.method == "POST":
                    guest._panic()
                    await asyncio.Event().wait()
                await super().answer(stream, session, stream_id)

        kind = PanicsWhenSetUp if self._behaviour == "panic-when-set-up" else FakeAgent
        agent = kind(ignore_poweroff=self._behaviour == "deaf")
        self._loop = asyncio.get_running_loop()
        self._running.wait()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._links.add(writer)
            try:
                if await self._connect(reader, writer):
                    await agent.serve(reader, writer)
            finally:
                self._links.discard(writer)
                writer.close()

        server = await asyncio.start_unix_server(connected, sock=self._listener) if self._listener else None
        if not self._restored:
            self._print("[    0.700000] fake agent")
        await agent.poweroff.wait()
        if server:
            server.close()
        if "squib.poweroff=restart" in self._boot_args:
            self._print("squib-agent: power off")
            self._restart()
        await asyncio.Event().wait()  # the connections last as long as the VMM

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read ``CONNECT PORT`` and answer it; return whether the agent is connected now."""
        import asyncio

        words = (await reader.readline()).split()
        if self._gated:
            await asyncio.Event().wait()
        if len(words) != 2 or words[0].lower() != b"connect" or not words[1].isdigit():
            return False
        self.port += 1
        if self.port == self._busy_port and int(words[1]) == AGENT_PORT:
            await asyncio.Event().wait()
        if int(words[1]) != AGENT_PORT or self._behaviour == "no-agent" or not await self._obey("before", writer):
            return False
        writer.write(b"OK %d\n" % self.port)
        await writer.drain()
        if self._loses_connections:
            self._loses_connections = False
            return False
        if self._behaviour == "hang":
            await asyncio.Event().wait()
        return await self._obey("after", writer)

    async def _obey(self, when: str, writer: asyncio.StreamWriter) -> bool:
        """Misbehave at a connection, if the settings say so; return whether it is to be served."""
        import asyncio

        fault = self._context.settings.fault(when, "vsock")
        if fault is None:
            return True
        if fault.do == "die":
            die(fault)
        if fault.do == "hang":
            await asyncio.Event().wait()
        if fault.do == "answer":
            writer.write(fault.message.encode() + b"\n")
            await writer.drain()
        return False
