"""What a guest's console says about the end of its VMM.

Pure functions. The guest controls what they read.
"""

from __future__ import annotations

from squib.drivers.base import ExitKind, ExitReason

PANIC = "Kernel panic - not syncing"
_AGENT_FATAL = "squib-agent: fatal:"
_EVIDENCE_LINES = 12


def panicked(console: str) -> ExitReason:
    """Return the reason for a guest whose kernel panicked."""
    where = console.rfind(PANIC)
    line = console[where:].partition("\n")[0].strip() if where >= 0 else "the console does not show the reason"
    return ExitReason(ExitKind.GUEST_PANICKED, f"the guest's kernel panicked: {line}", last_lines(console))


def powered_off(console: str) -> ExitReason:
    """Return the reason for a power-off of the guest.

    It contains the agent's message if the agent powered off because of its own fatal error.
    """
    where = console.rfind(_AGENT_FATAL)
    if where < 0:
        return ExitReason(ExitKind.POWERED_OFF, "the guest powered off")
    line = console[where:].partition("\n")[0].strip()
    return ExitReason(ExitKind.POWERED_OFF, f"the guest powered off: {line}", last_lines(console))


def rebooted() -> ExitReason:
    """Return the reason for a guest that restarted itself."""
    return ExitReason(ExitKind.GUEST_REBOOTED, "the guest rebooted, which ends its VM")


def last_lines(text: str) -> str:
    """Return the last lines of a log."""
    return "\n".join(text.rstrip().splitlines()[-_EVIDENCE_LINES:])
