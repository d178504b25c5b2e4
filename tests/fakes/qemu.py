"""A fake QEMU: it accepts the real command line and serves QMP on its inherited descriptor, but runs no guest.

What it does is the word after ``fake=`` in the kernel's command line:

    run        serve QMP until it is killed; ``quit`` ends it as QEMU would
    poweroff   print to the console, report a power-off, end
    panic      print a panic to the console, report a reset, end
    die        print an error, end with status 1
    hang       accept nothing, say nothing
    abort      serve QMP once, then print an error and end by SIGABRT
    crash      serve QMP once, then end by SIGSEGV
    complain   print 1 MiB of errors before each answer
    stuck      serve QMP, and stay in the state in which QEMU has not run its guest yet
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from typing import Any

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""}, "capabilities": []}}

status = "prelaunch"


def option_fd(argv: list[str], chardev: str) -> int:
    """The descriptor in ``-chardev socket,id=<chardev>,fd=<number>,…``."""
    value = next(text for text in argv if text.startswith(f"socket,id={chardev},"))
    return int(dict(item.split("=") for item in value.split(",")[1:])["fd"])


class CommandDecoder:
    """Splits a stream of JSON objects, which nothing needs to separate, into commands."""

    def __init__(self) -> None:
        self._buffer = ""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        self._buffer += data.decode()
        commands = []
        while self._buffer:
            try:
                command, end = json.JSONDecoder().raw_decode(self._buffer)
            except json.JSONDecodeError:
                break
            commands.append(command)
            self._buffer = self._buffer[end:].lstrip()
        return commands


def send(peer: socket.socket, message: dict[str, Any]) -> None:
    peer.sendall(json.dumps(message).encode() + b"\n")


def serve(peer: socket.socket, behaviour: str) -> None:
    """Greet, answer commands, and do what ``behaviour`` says when the guest may run."""
    global status
    send(peer, GREETING)
    decoder = CommandDecoder()
    while data := peer.recv(65536):
        for command in decoder.feed(data):
            if behaviour == "complain":
                complain()
            if command["execute"] == "cont" and behaviour != "stuck":
                status = "running"
            send(peer, {"return": {"status": status}, "id": command.get("id")})
            if command["execute"] == "quit":
                shut_down(peer, "host-qmp-quit")
            if command["execute"] == "cont":
                act(peer, behaviour)


def complain() -> None:
    """As QEMU does, ignore that the message could not be written."""
    for _ in range(1024):
        with contextlib.suppress(BlockingIOError):
            os.write(2, b"qemu-system-x86_64: virtio-serial-bus: Guest failure in adding port".ljust(1023) + b"\n")


def act(peer: socket.socket, behaviour: str) -> None:
    if behaviour == "poweroff":
        shut_down(peer, "guest-shutdown")
    elif behaviour == "panic":
        shut_down(peer, "guest-reset")
    elif behaviour == "abort":
        print("qemu-system-x86_64: Assertion failed", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGABRT)
    elif behaviour == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)


def shut_down(peer: socket.socket, reason: str) -> None:
    send(peer, {"event": "SHUTDOWN", "data": {"guest": True, "reason": reason}, "timestamp": {"seconds": 1}})
    sys.exit(0)


def main(argv: list[str]) -> None:
    if "--version" in argv:
        print("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c) 2003-2022 Fabrice Bellard")
        return
    if "help" in argv:
        print("Supported machines are:\nq35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-7.2)")
        return
    behaviour = argv[argv.index("-append") + 1].rpartition("fake=")[2]
    if behaviour == "die":
        sys.exit("qemu-system-x86_64: could not load kernel")
    if behaviour == "hang":
        time.sleep(60)
    console, _ = socket.socket(fileno=option_fd(argv, "console")).accept()
    monitor = socket.socket(fileno=option_fd(argv, "qmp"))
    console.sendall(b"squib-agent: ready\r\n")
    if behaviour == "panic":
        console.sendall(b"[    1.2] Kernel panic - not syncing: Attempted to kill init!\r\n")
    while True:
        peer, _ = monitor.accept()
        serve(peer, behaviour)


if __name__ == "__main__":
    main(sys.argv[1:])
