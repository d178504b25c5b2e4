"""An engine on TCP whose VM's terminals are scripts, and a person at a terminal of their own who runs squib."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from squib.errors import EngineUnavailable, NotFound, SquibError
from squib.protocol.errors import to_wire
from tests.fakes.values import make_vm

PATIENCE_S = 10.0
_SQUIB = [sys.executable, "-m", "squib"]


class Peer:
    """The VM's end of one connection."""

    def __init__(self, socket: ServerConnection) -> None:
        self._socket = socket
        self.first: dict[str, Any] = json.loads(socket.recv(timeout=PATIENCE_S))
        self.typed = bytearray()
        self.control: list[dict[str, Any]] = []

    def say(self, **message: object) -> None:
        self._socket.send(json.dumps(message))

    def begin(self) -> None:
        self.say(type="attached" if self.first["type"] == "attach" else "started", id="p7", pid=312)

    def print(self, data: bytes) -> None:
        self._socket.send(data)

    def read_until(self, end: bytes) -> bytes:
        """Read typed input up to ``end``."""
        while not self.typed.endswith(end):
            self._receive()
        return bytes(self.typed)

    def next_control(self) -> dict[str, Any]:
        """The next control message."""
        while not self.control:
            self._receive()
        return self.control.pop(0)

    def _receive(self) -> None:
        message = self._socket.recv(timeout=PATIENCE_S)
        if isinstance(message, bytes):
            self.typed += message
        else:
            self.control.append(json.loads(message))

    def until_left(self) -> None:
        """Wait until the client has closed the connection."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                self._receive()

    def exit(self, code: int = 0) -> None:
        self.say(type="exit", exit_code=code, signal=None, timed_out=False, duration_s=0.5)

    def fail(self, error: SquibError) -> None:
        self.say(type="error", error=to_wire(error))

    def drop(self) -> None:
        """Break the connection, as an engine that is killed."""
        self._socket.socket.close()


Script = Callable[[Peer], None]


class FakeTerminals:
    """An engine with a VM ``web``. Each connection to its terminals gets the next of ``scripts``."""

    def __init__(self) -> None:
        self.scripts: list[Script] = []
        self.vm = make_vm("vm-1", name="web")
        self.processes: list[dict[str, Any]] = []
        self.left: list[BaseException | None] = []
        """How the scripts ended."""
        self.is_down = False
        """Answers as if no engine ran."""
        self.port = 0

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"SQUIB_URL": f"http://127.0.0.1:{self.port}", "TERM": "xterm"}

    @contextlib.contextmanager
    def running(self) -> Iterator[FakeTerminals]:
        settings: dict[str, Any] = {"compression": None, "ping_interval": None}
        with serve(self._serve, "127.0.0.1", 0, process_request=self._answer, **settings) as server:
            self.port = server.socket.getsockname()[1]
            thread = threading.Thread(target=server.serve_forever, name="terminals")
            thread.start()
            yield self
        thread.join()
        assert [error for error in self.left if error] == []

    def _serve(self, socket: ServerConnection) -> None:
        error: BaseException | None = None
        try:
            self.scripts.pop(0)(Peer(socket))
        except ConnectionClosed:
            pass
        except BaseException as caught:  # noqa: BLE001 (of a thread; the test reports it)
            error = caught
        self.left.append(error)

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        path = request.path.removeprefix("/v1/vms/web/")
        if self.is_down:
            return _response(503, {"error": to_wire(EngineUnavailable("no engine answers"))})
        found = [process for process in self.processes if path == f"processes/{process['id']}"]
        if path.partition("?")[0] == "pty":
            return None
        if path == "/v1/vms/web":
            return _response(200, self.vm.model_dump(mode="json"))
        if path == "processes":
            return _response(200, {"processes": self.processes})
        if found:
            return _response(200, found[0])
        return _response(404, {"error": to_wire(NotFound(f"nothing at {path}"))})


def _response(status: int, value: object) -> Response:
    body = json.dumps(value).encode()
    headers = Headers({"content-type": "application/json", "content-length": str(len(body)), "connection": "close"})
    return Response(status, "", headers, body)


class Person:
    """A terminal on which a user runs a squib command."""

    def __init__(self, *words: str, environment: dict[str, str], stdout: int | None = None) -> None:
        self._outer, inner = pty.openpty()
        self._inner = inner
        self.resize(30, 100)
        modes = termios.tcgetattr(inner)
        modes[3] |= termios.ECHOCTL
        modes[6][termios.VERASE] = b"\x08"  # no usual one, so that it has to be put back
        termios.tcsetattr(inner, termios.TCSANOW, modes)
        self.before = self.modes()
        self.seen = b""
        self.process = subprocess.Popen(
            ["sh", "-c", 'exec 3<>"$0" && exec "$@" <&3 3<&-', os.ttyname(inner), *_SQUIB, *words],
            stdin=subprocess.DEVNULL,
            stdout=inner if stdout is None else stdout,
            stderr=inner,
            env=environment,
            start_new_session=True,  # its first terminal, which the shell opens, will control it
        )

    def modes(self) -> list[Any]:
        return termios.tcgetattr(self._inner)

    @property
    def is_raw(self) -> bool:
        return self.modes() != self.before

    def resize(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self._outer, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def type(self, data: bytes) -> None:
        os.write(self._outer, data)

    def read_until(self, text: bytes) -> bytes:
        """All that was printed, which must come to hold ``text``."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.seen:
            ready, _, _ = select.select([self._outer], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {text!r} in {self.seen!r}"
            self.seen += os.read(self._outer, 1 << 16)
        return self.seen

    def wait(self) -> int:
        """Read what is printed until squib ends; return its status."""
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end; so far {self.seen!r}"
            self._read_what_is_there(0.01)
        self._read_what_is_there(0)
        return self.process.returncode

    def _read_what_is_there(self, timeout_s: float) -> None:
        while select.select([self._outer], [], [], timeout_s)[0]:
            self.seen += os.read(self._outer, 1 << 16)

    def make_sane(self) -> None:
        """As a shell does when its job has stopped."""
        termios.tcsetattr(self._inner, termios.TCSANOW, self.before)

    def hang_up(self) -> None:
        """Close the terminal's window."""
        os.close(self._outer)
        self._outer = -1

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for fd in (self._outer, self._inner):
            if fd >= 0:
                os.close(fd)
