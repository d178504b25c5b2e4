"""Copy the guest's serial console and QEMU's own output into bounded logs."""

from __future__ import annotations

import socket

from squib.host import logs
from squib.host.logs import BoundedLog, LogPump
from squib.paths import QemuPaths

_CONSOLE_PAUSE_S = 0.002
"""QEMU sends each byte separately, and the socket holds about 280 of them: 140 KB/s, more than a serial port."""
_OUTPUT_PAUSE_S = 0.25
_OUTPUT_BYTES = 64 * 1024
"""QEMU prints little, unless a guest causes many warnings."""


def pump_console(connection: socket.socket, paths: QemuPaths) -> LogPump:
    """Copy the guest's console into its log.

    Takes over a connection to the console's socket.

    A guest that prints faster than the engine reads is blocked, as by any serial port. While no engine is connected,
    QEMU discards the output.
    """
    return LogPump(connection.detach(), BoundedLog(paths.console_log), pause_s=_CONSOLE_PAUSE_S)


def pump_output(paths: QemuPaths) -> LogPump:
    """Copy QEMU's output into its log.

    QEMU never blocks on it: output is lost while the pipe is full.

    Raises `OSError`, for example for a QEMU that an older squib started, which has no pipe.
    """
    return logs.pump_pipe(paths.output_pipe, BoundedLog(paths.vmm_log, _OUTPUT_BYTES), pause_s=_OUTPUT_PAUSE_S)
