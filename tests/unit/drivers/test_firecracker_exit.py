"""Why a Firecracker ended, from its log and the guest's console."""

import pytest

from squib.drivers.base import ExitKind
from squib.drivers.firecracker.exit import Evidence, exit_reason

PANIC = "[    0.9] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n"
OFF = "squib-agent: power off\r\n[    9.1] reboot: Restarting system\r\n"
EXITED = "2026-11-26T10:30:21 [vm-1:main] Firecracker exiting successfully. exit_code=0"
FAILED = "2026-11-26T10:30:21 [vm-1:main] Firecracker exiting with error. exit_code=1"
SIGNALLED = "2026-11-26T10:30:21 [vm-1:fc_vcpu 0] Shutting down VM after intercepting signal {}, code 1."


@pytest.mark.parametrize(
    ("evidence", "kind", "text"),
    [
        (Evidence(False, OFF, EXITED), ExitKind.POWERED_OFF, "powered off"),
        (Evidence(True, OFF, EXITED), ExitKind.POWERED_OFF, "powered off"),
        (Evidence(False, "squib-agent: fatal: listen: no port\n", EXITED), ExitKind.POWERED_OFF, "listen: no port"),
        (Evidence(False, "[ 9.1] reboot: Restarting system\n", EXITED), ExitKind.GUEST_REBOOTED, "rebooted"),
        (Evidence(False, PANIC, EXITED), ExitKind.GUEST_PANICKED, "Unable to mount root fs"),
        (Evidence(False, "", FAILED), ExitKind.FAILED, "exited with status 1"),
        (Evidence(False, "", SIGNALLED.format(31)), ExitKind.FAILED, "seccomp"),
        (Evidence(False, "", SIGNALLED.format(11)), ExitKind.FAILED, "SIGSEGV"),
        (Evidence(False, "", "Firecracker panicked at src/x.rs:1: oh"), ExitKind.FAILED, "panicked at src/x.rs"),
        (Evidence(True, "", "Running Firecracker v1.16.1"), ExitKind.KILLED, "squib killed Firecracker"),
        (Evidence(False, "", "Running Firecracker v1.16.1"), ExitKind.KILLED, "SIGKILL"),
        (Evidence(False, OFF, ""), ExitKind.KILLED, "SIGKILL"),
        (Evidence(False, "[    9.1] reboot: System halted\r\n", ""), ExitKind.POWERED_OFF, "powered off"),
        (Evidence(False, "[    9.1] reboot: Power down\r\n", ""), ExitKind.POWERED_OFF, "powered off"),
    ],
)
def test_reasons(evidence: Evidence, kind: ExitKind, text: str) -> None:
    reason = exit_reason(evidence)
    assert reason.kind is kind and text in reason.text


def test_what_a_guest_printed_is_shown_as_printable_text() -> None:
    reason = exit_reason(Evidence(False, "Kernel panic - not syncing: \x1b[31mred\n", EXITED))
    assert "\x1b" not in reason.text + reason.detail
