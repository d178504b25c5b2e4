"""Why a QEMU ended. Pure: evidence in, a sentence out. The guest controls most of the evidence.

With ``-no-reboot`` a power-off, a reboot and a panic of the guest all end QEMU with status 0. QEMU's SHUTDOWN event
tells a power-off from a reset; the guest's console tells a panic, which resets the machine (``panic=-1``), from a
reboot.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

from squib.drivers.base import ExitKind, ExitReason
from squib.protocol.text import printable, printable_lines

_PANIC = "Kernel panic - not syncing"
_AGENT_FATAL = "squib-agent: fatal:"
_POWER_DOWN = "reboot: Power down"
_RESTART = "reboot: Restarting system"
_EVIDENCE_LINES = 12


@dataclass(frozen=True)
class Evidence:
    """What is known when a QEMU has ended.

    ``returncode`` is the exit status, minus the number of a signal, or ``None`` if it was not this engine's child.
    ``shutdown`` is the reason of the SHUTDOWN event (QEMU's ``ShutdownCause``), ``None`` if none was seen.
    """

    returncode: int | None
    shutdown: str | None
    killed: bool = False
    console: str = ""
    vmm_log: str = ""


def exit_reason(evidence: Evidence) -> ExitReason:
    """Why QEMU ended: by its own word, else by its exit status, else by what the guest's kernel printed last."""
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
        return ExitReason(ExitKind.FAILED, f"QEMU ended with status {evidence.returncode}", evidence.vmm_log)
    return _by_console(evidence.console)


def _by_event(cause: str, console: str) -> ExitReason:
    if cause == "guest-panic" or (cause == "guest-reset" and _PANIC in console):
        return _panicked(console)
    if cause == "guest-shutdown":
        return _powered_off(console)
    if cause == "guest-reset":
        return ExitReason(ExitKind.GUEST_REBOOTED, "the guest rebooted, which ends its VM")
    return ExitReason(ExitKind.KILLED, f"QEMU was told to quit ({cause})")


def _by_signal(number: int, vmm_log: str) -> ExitReason:
    name = signal.Signals(number).name if number in signal.valid_signals() else str(number)
    if number == signal.SIGKILL:
        return ExitReason(ExitKind.KILLED, "QEMU was killed (SIGKILL), by an administrator or for lack of memory")
    if number == signal.SIGSYS:
        return ExitReason(
            ExitKind.FAILED, "QEMU was ended by its sandbox: it made a forbidden system call (SIGSYS)", vmm_log
        )
    return ExitReason(ExitKind.FAILED, f"QEMU was ended by {name}", vmm_log)


def _by_console(console: str) -> ExitReason:
    """For a QEMU whose monitor nobody listened to."""
    end = _last_lines(console)
    if _PANIC in console:
        return _panicked(console)
    if _POWER_DOWN in end:
        return _powered_off(console)
    if _RESTART in end:
        return ExitReason(ExitKind.GUEST_REBOOTED, "the guest rebooted, which ends its VM")
    return ExitReason(ExitKind.UNKNOWN, "QEMU ended without a word, or nobody listened", end)


def _panicked(console: str) -> ExitReason:
    where = console.rfind(_PANIC)
    line = console[where:].partition("\n")[0].strip() if where >= 0 else "the reason is not on the console"
    return ExitReason(ExitKind.GUEST_PANICKED, f"the guest's kernel panicked: {line}", _last_lines(console))


def _powered_off(console: str) -> ExitReason:
    """The agent powers off after a fault of its own, and says so first."""
    where = console.rfind(_AGENT_FATAL)
    if where < 0:
        return ExitReason(ExitKind.POWERED_OFF, "the guest powered off")
    line = console[where:].partition("\n")[0].strip()
    return ExitReason(ExitKind.POWERED_OFF, f"the guest powered off: {line}", _last_lines(console))


def _last_lines(text: str) -> str:
    return "\n".join(text.rstrip().splitlines()[-_EVIDENCE_LINES:])
