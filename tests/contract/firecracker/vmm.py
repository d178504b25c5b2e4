"""A Firecracker, stub or real, as the suite sees it: a program in an empty directory, and its API."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from squib.guest.agent import AgentClient
from squib.models import ExecRequest
from squib.protocol.frames import FrameDecoder, FrameKind
from tests.fakes.firecracker.guest import AGENT_PORT
from tests.fakes.firecracker.install import install

REAL = "SQUIB_TEST_FIRECRACKER"
BOOT = {"kernel_image_path": "kernel", "boot_args": "console=ttyS0 reboot=k panic=1 squib.poweroff=restart"}
DISK = {"drive_id": "disk", "is_root_device": False, "path_on_host": "disk", "is_read_only": False}
VSOCK = {"guest_cid": 3, "uds_path": "vsock"}
START = {"action_type": "InstanceStart"}
TIMEOUT_S = 30.0
BOOT_TIMEOUT_S = 120.0


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(os.path.relpath(self._path))


class Vmm:
    """A running VMM. Its working directory has a ``kernel`` and a ``disk`` that no guest could use."""

    def __init__(self, process: subprocess.Popen[bytes] | None, folder: Path, version: str) -> None:
        self.process, self.folder = process, folder
        self.version = version
        self.release = tuple(map(int, version.split(".")[:2]))
        self._connection = _Connection(folder / "api.sock")
        self._connection.connect()

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Make a request; return status and JSON. ``bytes`` are sent as they are."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        self._connection.request(method, path, data)
        response = self._connection.getresponse()
        text = response.read()
        assert response.headers["Server"] == "Firecracker API"
        assert response.headers["Connection"] == "keep-alive"
        return response.status, json.loads(text) if text else None

    def ok(self, method: str, path: str, body: Any = None) -> None:
        """Make a request that must be answered with 204."""
        assert self.call(method, path, body) == (204, None)

    def error(self, method: str, path: str, body: Any = None) -> str:
        """Make a request that must be answered with 400; return the text, without the position in the JSON."""
        status, answer = self.call(method, path, body)
        assert status == 400
        assert answer.keys() == {"fault_message"}
        return re.sub(r" at line \d+ column \d+\.$", "", answer["fault_message"])

    def vsock(self, port: int) -> socket.socket:
        """Ask for a connection to a port of the guest."""
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(TIMEOUT_S)
        link.connect(os.path.relpath(self.folder / "vsock"))
        link.sendall(b"CONNECT %d\n" % port)
        return link

    def boot(self) -> None:
        """Configure and start a guest."""
        self.ok("PUT", "/boot-source", BOOT)
        self.ok("PUT", "/vsock", VSOCK)
        self.ok("PUT", "/actions", START)

    def timeout(self, timeout_s: float) -> None:
        """Give up on answers after this time."""
        assert self._connection.sock
        self._connection.sock.settimeout(timeout_s)

    def close(self) -> None:
        """End the VMM if it still runs."""
        self._connection.close()
        if self.process:
            self.process.kill()
            self.process.communicate()


def connector(vmm: Vmm) -> Callable[[], Awaitable[socket.socket]]:
    """Return what `squib.guest.agent.AgentClient` takes, for the agent of a VMM's guest."""

    async def connect() -> socket.socket:
        while True:  # a connection is closed while nothing listens, and the client has a time limit
            link = await asyncio.to_thread(vmm.vsock, AGENT_PORT)
            link.settimeout(BOOT_TIMEOUT_S)
            with link.makefile("rb", buffering=0) as reader:
                if await asyncio.to_thread(reader.readline):
                    link.setblocking(False)
                    return link
            link.close()
            await asyncio.sleep(0.05)

    return connect


async def output_of(client: AgentClient, *argv: str) -> bytes:
    """Run a command in a guest; return its output."""
    decoder = FrameDecoder()
    async with await client.exec(ExecRequest(argv=list(argv))) as response:
        frames = [frame async for chunk in response.stream() for frame in decoder.feed(chunk)]
    return b"".join(frame.payload for frame in frames if frame.kind is FrameKind.STDOUT)


def wait_for_api(path: Path) -> None:
    """Wait until a VMM listens whose output is not read."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as link:
            link.connect(os.path.relpath(path))
            return
        time.sleep(0.005)
    raise AssertionError(f"nothing listens on {path}")


def binary(name: str, folder: Path) -> tuple[Path, str]:
    """Return the program under test and its version; skip the test if it is not there."""
    if name != "real":
        version = name.removeprefix("stub-")
        folder.mkdir()
        return install(folder, version=version).firecracker, version
    if not os.environ.get(REAL):
        pytest.skip(f"{REAL} names no directory with a real Firecracker")
    path = Path(os.environ[REAL]) / "firecracker"
    shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    return path, shown.split()[1].removeprefix("v")


@contextlib.contextmanager
def running(path: Path, version: str, folder: Path, *arguments: str) -> Iterator[Vmm]:
    """A VMM that listens, with these arguments; ended afterwards."""
    (folder / "kernel").write_bytes(b"no kernel")
    (folder / "disk").write_bytes(bytes(4096))
    argv = [path, "--id", "vm-1", "--api-sock", "api.sock", *arguments]
    process = subprocess.Popen(argv, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout
    try:
        while b"Listening on API socket" not in (line := process.stdout.readline()):
            assert line, "the VMM has ended"
    except BaseException:
        process.kill()
        process.communicate()
        raise
    vmm = Vmm(process, folder, version)
    try:
        yield vmm
    finally:
        vmm.close()
