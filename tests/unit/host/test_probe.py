"""What the reports of the probe's guest mean, and that a guest that says nothing is not waited for."""

import os
import platform
import sys
from pathlib import Path

import pytest

from squib.host import kvmguest
from squib.host.probe import KVMProbe, judge, probe_kvm, probe_nesting

USABLE = "cs 8 1.0\nsse2 8 1.0\nidt 8 1.0\nresumed 8 1.000000\nlooped 8 1.000012\nend HLT 1.0\n"


def report(**changes: str | None) -> str:
    """The report of a good guest with lines replaced, or removed if ``None``."""
    lines = [line.split(" ", 1) for line in USABLE.splitlines()]
    changed = [(name, changes.get(name, rest)) for name, rest in lines]
    return "".join(f"{name} {rest}\n" for name, rest in changed if rest is not None)


def test_a_guest_that_does_all_it_should() -> None:
    assert judge(USABLE).usable


def test_hardware_virtualization_in_an_emulated_host_is_slow_but_usable() -> None:
    """The slowest of twelve reports from a nested guest under TCG, on a host with three times as many busy threads."""
    slow = report(cs="8 72.870798", sse2="8 72.893602", idt="8 72.902437", resumed="8 72.903143", looped="8 72.949515")
    assert judge(slow).usable
    interpreted = 2 * kvmguest.LOOP_TURNS / 2e6  # two instructions per turn, at 2 MIPS
    assert not judge(report(looped=f"8 {1 + interpreted}")).usable


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cs 8 1.0\nend INTERNAL_ERROR 1.0\n", "SSE2"),
        (report(cs="11 1.0"), "ring 0"),
        (report(idt=None), "exception handler"),
        (report(end="SHUTDOWN 1.0"), "SHUTDOWN"),
    ],
)
def test_guests_that_rule_kvm_out(text: str, reason: str) -> None:
    verdict = judge(text)
    assert not verdict.usable
    assert verdict.certain
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (report(looped="8 1.200000"), ""),  # slow: interpreted, or a busy host
        (report(end=None), "python3 was killed by SIGALRM"),  # killed by its alarm
        ("cs 8 1.0\n", "python3 was killed by SIGALRM"),
        ("", "OSError: [Errno 16] Device or resource busy"),
    ],
)
def test_what_a_busy_host_explains_too_is_tried_again(text: str, error: str) -> None:
    verdict = judge(text, error)
    assert not verdict.usable
    assert not verdict.certain


def pretend_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> Path:
    """Let ``program`` stand for the process with the guest; returns a file that counts its runs."""
    runs = tmp_path / "runs"
    script = tmp_path / "guest.py"
    script.write_text(f"open({str(runs)!r}, 'a').write('x')\n{program}")
    monkeypatch.setattr(kvmguest, "__file__", str(script))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return runs


@pytest.mark.anyio
async def test_a_certain_answer_is_believed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = pretend_guest(tmp_path, monkeypatch, f"print({USABLE!r}, end='')")
    assert await probe_kvm(Path("/dev/null")) == KVMProbe(True, "hardware virtualization works", True)
    assert runs.read_text() == "x"


@pytest.mark.anyio
async def test_a_slow_loop_is_believed_the_third_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = pretend_guest(tmp_path, monkeypatch, f"print({report(looped='8 1.5')!r}, end='')")
    result = await probe_kvm(Path("/dev/null"))
    assert not result.usable
    assert "2.5 µs per loop turn" in result.reason
    assert runs.read_text() == "xxx"


@pytest.mark.anyio
async def test_a_hanging_guest_is_killed_by_its_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alarm = "import os, signal, time\nsignal.setitimer(signal.ITIMER_REAL, 0.02)\nos.write(1, b'cs 8 1.0\\n')\n"
    pretend_guest(tmp_path, monkeypatch, alarm + "time.sleep(60)")
    result = await probe_kvm(Path("/dev/null"))
    assert not result.usable
    assert "SIGALRM" in result.reason


@pytest.mark.anyio
async def test_no_device(tmp_path: Path) -> None:
    result = await probe_kvm(tmp_path / "kvm")
    assert not result.usable
    assert not result.present


@pytest.mark.anyio
async def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    result = await probe_kvm(tmp_path / "kvm")
    assert not result.usable
    assert result.present
    assert "group kvm" in result.reason


@pytest.mark.parametrize(
    ("module", "value", "usable"),
    [("kvm_amd", "1", True), ("kvm_amd", "0", False), ("kvm_intel", "Y", True), ("kvm_intel", "N", False)],
)
def test_the_hosts_module_says_if_guests_may_run_vms(tmp_path: Path, module: str, value: str, usable: bool) -> None:
    parameters = tmp_path / module / "parameters"
    parameters.mkdir(parents=True)
    (parameters / "nested").write_text(f"{value}\n")
    probe = probe_nesting(tmp_path)
    assert probe.usable == usable
    if not usable:
        assert f"{module} has nested={value}" in probe.reason
        assert f"modprobe {module} nested=1" in probe.command


def test_without_a_module_of_kvm_guests_run_no_vms(tmp_path: Path) -> None:
    probe = probe_nesting(tmp_path)
    assert not probe.usable
    assert probe.reason and not probe.command


def test_the_guest_needs_nothing_of_squib() -> None:
    source = Path(kvmguest.__file__).read_text()
    imported = {line.split()[1] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert imported <= sys.stdlib_module_names | {"__future__"}
