"""Why a QEMU ended, from what is left of it."""

import signal

import pytest

from squib.drivers.base import ExitKind
from squib.drivers.qemu.exit import Evidence, exit_reason

PANIC = "[    0.9] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n[    0.9] CPU: 0 PID: 1\r\n"


@pytest.mark.parametrize(
    ("evidence", "kind"),
    [
        (Evidence(0, "guest-shutdown"), ExitKind.POWERED_OFF),
        (Evidence(0, "guest-reset"), ExitKind.GUEST_REBOOTED),
        (Evidence(0, "guest-reset", console=PANIC), ExitKind.GUEST_PANICKED),
        (Evidence(0, "guest-panic"), ExitKind.GUEST_PANICKED),
        (Evidence(0, "host-qmp-quit"), ExitKind.KILLED),
        (Evidence(0, "host-signal"), ExitKind.KILLED),
        (Evidence(-signal.SIGKILL, None), ExitKind.KILLED),
        (Evidence(None, None, killed=True), ExitKind.KILLED),
        (Evidence(-signal.SIGSEGV, None), ExitKind.FAILED),
        (Evidence(-signal.SIGSYS, None), ExitKind.FAILED),
        (Evidence(1, None), ExitKind.FAILED),
        (Evidence(0, None, console=PANIC), ExitKind.GUEST_PANICKED),
        (Evidence(None, None, console="[ 9.1] reboot: Power down\n"), ExitKind.POWERED_OFF),
        (Evidence(0, None, console="[ 9.1] reboot: Restarting system\n"), ExitKind.GUEST_REBOOTED),
        (Evidence(0, None), ExitKind.UNKNOWN),
        (Evidence(None, None, console="squib-agent: ready\n"), ExitKind.UNKNOWN),
    ],
)
def test_kinds(evidence: Evidence, kind: ExitKind) -> None:
    reason = exit_reason(evidence)
    assert reason.kind is kind
    assert reason.text


def test_a_machine_that_was_killed_after_it_powered_off_had_powered_off() -> None:
    assert exit_reason(Evidence(0, "guest-shutdown", killed=True)).kind is ExitKind.POWERED_OFF


def test_the_panic_is_quoted() -> None:
    reason = exit_reason(Evidence(0, "guest-reset", console="boot\n" + PANIC))
    assert reason.text == "the guest's kernel panicked: Kernel panic - not syncing: VFS: Unable to mount root fs"
    assert "CPU: 0" in reason.detail


def test_an_agent_that_gave_up_is_quoted() -> None:
    console = "boot\nsquib-agent: fatal: overlay: bad superblock\n[ 1.0] reboot: Power down\n"
    reason = exit_reason(Evidence(0, "guest-shutdown", console=console))
    assert reason.text == "the guest powered off: squib-agent: fatal: overlay: bad superblock"


def test_qemus_own_words_are_kept() -> None:
    reason = exit_reason(Evidence(1, None, vmm_log="qemu: could not load kernel"))
    assert reason.text == "QEMU exited with status 1"
    assert reason.detail == "qemu: could not load kernel"


def test_signals_are_named() -> None:
    assert exit_reason(Evidence(-35, None)).text == "QEMU was killed by signal 35"  # real-time, without a name
    assert "SIGSEGV" in exit_reason(Evidence(-signal.SIGSEGV, None)).text
    assert "seccomp" in exit_reason(Evidence(-signal.SIGSYS, None)).text


@pytest.mark.parametrize(
    "evidence",
    [
        Evidence(
            0, "guest-reset", console="Kernel panic - not syncing: \x1b[2J\u202eno\x9b\rroot@host# \x07\r\n\x1b[31mCPU"
        ),
        Evidence(0, "guest-shutdown", console="squib-agent: fatal: \x1b]0;owned\x07\u202e\r\nreboot: Power down"),
        Evidence(0, None, console="\x1b[2J\u2066 no word\r\n"),
        Evidence(1, None, vmm_log="qemu: \x1b[2J\x07\u202e"),
        Evidence(-signal.SIGSYS, None, vmm_log="qemu: \x1b[2J\x07\u202e"),
        Evidence(0, "\x1b[2J\nhost-\u202equit"),
    ],
)
def test_a_guest_cannot_control_a_terminal_or_forge_a_line(evidence: Evidence) -> None:
    reason = exit_reason(evidence)
    assert reason.text.isprintable()
    assert all(line.isprintable() for line in reason.detail.split("\n"))
