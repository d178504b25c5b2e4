"""The terminal's modes: raw in the block, and afterwards what they were."""

import contextlib
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Iterator

import pytest

from squib.cli.terminal.rawmode import RawMode


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """The two ends of a terminal: the one that a person has, and the one that programs have."""
    outer, inner = pty.openpty()
    yield outer, inner
    for fd in (outer, inner):
        os.close(fd)


def test_every_byte_passes_either_way(terminal: tuple[int, int]) -> None:
    outer, inner = terminal
    every = bytes(range(256))
    with RawMode(inner):
        os.write(outer, every)
        assert os.read(inner, 1000) == every
        os.write(inner, every)
        assert os.read(outer, 1000) == every


def test_even_of_a_terminal_that_changes_them(terminal: tuple[int, int]) -> None:
    _, inner = terminal
    modes = termios.tcgetattr(inner)
    modes[0] |= termios.INLCR | termios.IGNCR | termios.ISTRIP | termios.IXOFF | termios.PARMRK
    termios.tcsetattr(inner, termios.TCSANOW, modes)
    test_every_byte_passes_either_way(terminal)


@pytest.mark.parametrize("error", [None, OSError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_it_is_afterwards_what_it_was(error: BaseException | None, terminal: tuple[int, int]) -> None:
    _, inner = terminal
    before = termios.tcgetattr(inner)
    before[3] &= ~termios.ECHO
    termios.tcsetattr(inner, termios.TCSANOW, before)
    with contextlib.suppress(OSError, KeyboardInterrupt, SystemExit), RawMode(inner) as mode:
        assert termios.tcgetattr(inner) != before
        mode.leave()
        assert termios.tcgetattr(inner) == before
        mode.enter()
        assert termios.tcgetattr(inner) != before
        if error:
            raise error
    assert termios.tcgetattr(inner) == before


def test_a_terminal_that_is_gone_is_no_error() -> None:
    outer, inner = pty.openpty()
    with RawMode(inner):
        os.close(outer)
    os.close(inner)


JOB = """
import os, signal, sys, termios
from squib.cli.terminal.rawmode import RawMode
os.setpgid(0, 0)  # a group that has not the terminal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
mode = RawMode(0)
mode.enter()
if "changed" in sys.argv:
    modes = termios.tcgetattr(0)
    modes[1] |= termios.OPOST
    termios.tcsetattr(0, termios.TCSANOW, modes)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTTOU})
mode.leave()
"""


@pytest.mark.parametrize("changed", [False, True])
def test_in_the_background_it_is_put_back_unless_a_shell_has_taken_it(changed: bool, terminal: tuple[int, int]) -> None:
    _, inner = terminal
    before = termios.tcgetattr(inner)
    words = [sys.executable, "-c", JOB, *(["changed"] if changed else [])]
    # The shell's first terminal controls it and what it starts.
    shell = ["sh", "-c", '"$@" <"$0"', os.ttyname(inner), *words]
    subprocess.run(shell, stdin=subprocess.DEVNULL, start_new_session=True, check=True, timeout=20)
    assert (termios.tcgetattr(inner) == before) is not changed
