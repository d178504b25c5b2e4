"""Find out why a QEMU ended, from the evidence.

Pure functions. The guest controls most of the evidence.

With ``-no-reboot``, QEMU exits with status 0 after a power-off, a reboot or a panic of the guest. QEMU's SHUTDOWN event
distinguishes a power-off from a reset. The guest's console distinguishes a panic, which resets the machine
(``panic=-1``), from a reboot.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

from squib.drivers.base import ExitKind, ExitReason
from squib.drivers.evidence import PANIC, last_lines, panicked, powered_off, rebooted
from squib.host.processes import describe_exit
from squib.protocol.text import printable, printable_lines

_POWER_DOWN = "reboot: Power down"
_RESTART = "reboot: Restarting system"


@dataclass(frozen=True)
class Evidence:
    """What is known when a QEMU has ended.

    ``returncode`` is the exit status, minus the signal's number, or ``None`` if QEMU was not a child of this engine.
    ``shutdown`` is the reason in the SHUTDOWN event (QEMU's ``ShutdownCause``); ``None`` if no event was received.
    ``killed``: this engine killed it.
    """

    returncode: int | None
    shutdown: str | None
    killed: bool = False
    console: str = ""
    vmm_log: str = ""


def exit_reason(evidence: Evidence) -> ExitReason:
    """Return why QEMU ended, by its SHUTDOWN event if there is one.

    Otherwise the exit status or the guest's console gives the reason.
    """
    reason = _reason(evidence)
    return ExitReason(reason.kind, printable(reason.text), printable_lines(reason.detail))


def _reason(evidence: Evidence) -> ExitReason:
    if evidence.shutdown is not None:
        return _by_event(evidence.shutdown, evidence.console)
    if evidence.killed:
        return ExitReason(ExitKind.KILLED, "squib killed QEMU")
    if evidence.returncode is not None and evidence.returncode < 0:
        return _by_signal(-evidence.returncode, evidence.vmm_log)
    if evidence.returncode:
        return ExitReason(ExitKind.FAILED, f"QEMU {describe_exit(evidence.returncode)}", evidence.vmm_log)
    return _by_console(evidence.console)


def _by_event(cause: str, console: str) -> ExitReason:
    if cause == "guest-panic" or (cause == "guest-reset" and PANIC in console):
        return panicked(console)
    if cause == "guest-shutdown":
        return powered_off(console)
    if cause == "guest-reset":
        return rebooted()
    return ExitReason(ExitKind.KILLED, f"QEMU was shut down from outside the guest ({cause})")


def _by_signal(number: int, vmm_log: str) -> ExitReason:
    if number == signal.SIGKILL:
        return ExitReason(ExitKind.KILLED, "QEMU was killed by SIGKILL: out of memory, or killed by an administrator")
    if number == signal.SIGSYS:
        return ExitReason(
            ExitKind.FAILED, "QEMU's seccomp filter killed it for a forbidden system call (SIGSYS)", vmm_log
        )
    return ExitReason(ExitKind.FAILED, f"QEMU {describe_exit(-number)}", vmm_log)


def _by_console(console: str) -> ExitReason:
    """Return the reason for a QEMU whose SHUTDOWN event no engine received."""
    end = last_lines(console)
    if PANIC in console:
        return panicked(console)
    if _POWER_DOWN in end:
        return powered_off(console)
    if _RESTART in end:
        return rebooted()
    return ExitReason(ExitKind.UNKNOWN, "QEMU ended for an unknown reason while no engine was connected to it", end)
