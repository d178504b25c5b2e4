"""A second, bare port of a VM, to measure what a byte costs without squib.

It is of the same kind as the agent's port, and no agent uses it.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from squib import AsyncVM
from squib.host import sockets

_NAME = "squib.bench"
_PIECE = bytes(1 << 16)
_TIMEOUT_S = 300.0
_DEVICE = f"/dev/$(basename $(dirname $(grep -lx {_NAME} /sys/class/virtio-ports/*/name)))"


@contextmanager
def bare_port(qmp_socket: Path) -> Iterator[BarePort]:
    """Add a port to the running QEMU whose monitor is at ``qmp_socket``.

    No engine may be connected to the monitor.
    """
    ours, qemus = socket.socketpair()
    with ours:
        with qemus, sockets.connect(qmp_socket) as monitor:
            _add_port(monitor, qemus.fileno())
        ours.settimeout(_TIMEOUT_S)
        yield BarePort(ours)


def _add_port(monitor: socket.socket, fd: int) -> None:
    monitor.settimeout(_TIMEOUT_S)
    lines = monitor.makefile("rb")

    def execute(command: str, arguments: dict[str, object], fds: tuple[int, ...] = ()) -> None:
        socket.send_fds(monitor, [json.dumps({"execute": command, "arguments": arguments}).encode()], fds)
        while "return" not in (answer := json.loads(lines.readline())):
            if "error" in answer:
                raise RuntimeError(f"QEMU refuses {command}: {answer['error']}")

    lines.readline()  # the greeting
    execute("qmp_capabilities", {})
    execute("getfd", {"fdname": _NAME}, (fd,))
    connected = {"addr": {"type": "fd", "data": {"str": _NAME}}, "server": False}
    execute("chardev-add", {"id": _NAME, "backend": {"type": "socket", "data": connected}})
    execute("device_add", {"driver": "virtserialport", "id": _NAME, "chardev": _NAME, "name": _NAME})


class BarePort:
    """A port with `dd` on the guest's end and a socket loop on the host's."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    async def send(self, vm: AsyncVM, target: str, size: int) -> None:
        """Send ``size`` zeros into the guest's file ``target``.

        ``size`` is a multiple of 64 KiB.
        """
        dd = f"dd if={_DEVICE} of={target} bs=64k iflag=fullblock count={size // len(_PIECE)}"
        await asyncio.gather(asyncio.to_thread(self._write, size), vm.run(dd, check=True))

    async def receive(self, vm: AsyncVM, source: str, size: int) -> None:
        """Receive the first ``size`` bytes of the guest's file ``source``."""
        dd = f"dd if={source} of={_DEVICE} bs=64k count={size // len(_PIECE)}"
        await asyncio.gather(asyncio.to_thread(self._read, size), vm.run(dd, check=True))

    def _write(self, size: int) -> None:
        for _ in range(size // len(_PIECE)):
            self._connection.sendall(_PIECE)

    def _read(self, size: int) -> None:
        buffer = bytearray(len(_PIECE))
        while size > 0:
            count = self._connection.recv_into(buffer)
            if not count:
                raise ConnectionError("QEMU closed the port")
            size -= count
