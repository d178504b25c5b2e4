"""What a guest prints on its serial console, and what QEMU prints itself, on the way into logs of bounded size."""

from __future__ import annotations

import socket

from squib.host import logs
from squib.host.logs import BoundedLog, LogPump
from squib.paths import QemuPaths

_CONSOLE_PAUSE_S = 0.002
"""QEMU sends each byte on its own, and the socket holds about 280 such pieces: 140 KB/s, more than a serial port."""
_OUTPUT_PAUSE_S = 0.25
_OUTPUT_BYTES = 64 * 1024
"""QEMU prints little, except for a guest that makes it complain."""


def pump_console(connection: socket.socket, paths: QemuPaths) -> LogPump:
    """Copy the guest's console into its log. Takes over a connection to the console's socket.

    A guest that prints faster than the engine reads waits, as for any serial port. Without an engine, QEMU drops what
    it prints.
    """
    return LogPump(connection.detach(), BoundedLog(paths.console_log), pause_s=_CONSOLE_PAUSE_S)


def pump_output(paths: QemuPaths) -> LogPump:
    """Copy what QEMU prints into its log. QEMU never waits: what a full pipe does not take is lost.

    Raises `OSError`, such as for a QEMU of an older squib, which had no pipe.
    """
    return logs.pump_pipe(paths.output_pipe, BoundedLog(paths.vmm_log, _OUTPUT_BYTES), pause_s=_OUTPUT_PAUSE_S)
