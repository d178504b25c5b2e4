"""Find out why a Firecracker ended, from its log and the guest's console.

Pure functions. The guest controls the console.

Firecracker is not a child of the engine, because its jailer starts it in a PID namespace. So the engine cannot wait for
its exit status. It is read from the log, whose last line has the exit status, or the signal that ended Firecracker.
After SIGKILL the log has neither.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from squib.drivers.base import ExitKind, ExitReason
from squib.drivers.evidence import PANIC, last_lines, panicked, powered_off, rebooted
from squib.host.processes import describe_exit
from squib.protocol.text import printable, printable_lines

_EXITED = re.compile(r"Firecracker exiting (?:successfully|with error)\. exit_code=(\d{1,3})")
_SIGNALLED = re.compile(r"Shutting down VM after intercepting signal (\d{1,2})")
_PANICKED = re.compile(r"Firecracker panicked at .*")
_HALTED = re.compile(r"\[ *\d+\.\d+\] reboot: (System halted|Power down)\s*\Z")
_POWER_OFF = "squib-agent: power off"
_FATAL = "squib-agent: fatal:"


@dataclass(frozen=True)
class Evidence:
    """What is known when a Firecracker has ended. ``killed``: this engine killed it."""

    killed: bool
    console: str
    vmm_log: str


def exit_reason(evidence: Evidence) -> ExitReason:
    """Return why Firecracker ended."""
    reason = _reason(evidence)
    return ExitReason(reason.kind, printable(reason.text), printable_lines(reason.detail))


def _reason(evidence: Evidence) -> ExitReason:
    log = evidence.vmm_log
    status = exit_status(log)
    if status is not None:
        return _by_status(status, evidence)
    if found := _SIGNALLED.findall(log):
        number = int(found[-1])
        if number == signal.SIGSYS:
            text = "Firecracker made a system call that its seccomp filter forbids (SIGSYS)"
            return ExitReason(ExitKind.FAILED, text, last_lines(log))
        return ExitReason(ExitKind.FAILED, f"Firecracker {describe_exit(-number)}", last_lines(log))
    if panic := _PANICKED.search(log):
        return ExitReason(ExitKind.FAILED, panic[0], last_lines(log))
    if _HALTED.search(evidence.console):  # squib ended it then
        return powered_off(evidence.console)
    if evidence.killed:
        return ExitReason(ExitKind.KILLED, "squib killed Firecracker")
    text = "Firecracker was killed by SIGKILL: out of memory, or killed by an administrator"
    return ExitReason(ExitKind.KILLED, text, last_lines(log))


def _by_status(status: int, evidence: Evidence) -> ExitReason:
    """Return the reason for a Firecracker that exited. It exits with 0 if the guest restarted."""
    console = evidence.console
    if status:
        return ExitReason(ExitKind.FAILED, f"Firecracker {describe_exit(status)}", last_lines(evidence.vmm_log))
    if PANIC in console:
        return panicked(console)
    if _POWER_OFF in console or _FATAL in console:
        return powered_off(console)
    return rebooted()


def exit_status(vmm_log: str) -> int | None:
    """Return the exit status in Firecracker's log; ``None`` if the log does not say it."""
    found = _EXITED.findall(vmm_log)
    return int(found[-1]) if found else None
