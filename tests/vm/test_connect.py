"""Shells in VMs as a person uses them: tmux is the terminal, and types."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from squib import VM
from squib.paths import Home
from tests.vm.conftest import end_engine, engine_pids

SQUIB = f"{sys.executable} -m squib"
PATIENCE_S = 30.0
DETACH = "C-]"
PROMPT = r"^root@web:~#\s*\Z"
HOST_PROMPT = r"^host\$\s*\Z"
"""It is all that is on the last line."""


class Tmux:
    """A terminal of 100 by 30, with a shell of this host in it that says ``host$``."""

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "tmux"
        self._call("-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "30", "PS1='host$ ' exec sh")
        self.shows(r"^host\$")
        self.modes_before = self.modes()

    def _call(self, *words: str) -> str:
        command = ["tmux", "-S", str(self._socket), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout

    def ask(self, what: str) -> str:
        return self._call("display-message", "-p", f"#{{{what}}}").strip()

    def screen(self) -> str:
        """What is to be seen, and what has scrolled away."""
        return self._call("capture-pane", "-p", "-J", "-S", "-")

    def shows(self, pattern: str) -> str:
        """Wait until ``pattern`` (of one line) is on the screen."""
        return self._until(lambda: re.search(pattern, self.screen(), re.MULTILINE) is not None, pattern)

    def _until(self, true: Callable[[], bool], what: str) -> str:
        deadline = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < deadline, f"not {what}:\n{self.screen()}"
            time.sleep(0.05)
        return self.screen()

    def type(self, text: str) -> None:
        self._call("send-keys", "-l", text)
        self._call("send-keys", "Enter")

    def type_line(self, text: str) -> None:
        """Type for a program that the shell is just starting: line feed ends a line in raw mode as in any other."""
        self._call("send-keys", "-l", text)
        self._call("send-keys", "C-j")

    def press(self, key: str) -> None:
        self._call("send-keys", key)

    def clear(self) -> None:
        """Forget what is on the screen, but its last line."""
        self._call("send-keys", "-R")
        self._call("clear-history")

    def resize(self, cols: int, rows: int) -> None:
        self._call("resize-window", "-x", str(cols), "-y", str(rows))

    def modes(self) -> str:
        """What stty says of the terminal, but its size."""
        command = ["stty", "-a", "-F", self.ask("pane_tty")]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return re.sub(r"rows \d+; columns \d+;", "", said)

    def until_full_screen(self, wanted: bool) -> None:
        self._until(lambda: self.ask("alternate_on") == str(int(wanted)), f"alternate screen {wanted}")

    def ends_sane(self, status: int) -> str:
        """Wait until squib has ended with ``status``; the terminal is then as it was before."""
        self.shows(HOST_PROMPT)
        self.type("echo status=$?")
        screen = self.shows(rf"^status={status}$")
        assert self.modes() == self.modes_before
        assert [self.ask(mode) for mode in ("alternate_on", "cursor_flag", "mouse_any_flag")] == ["0", "1", "0"]
        return screen

    def client_pid(self) -> int:
        """The pid of squib, which the shell has started."""
        shell = self.ask("pane_pid")
        (pid,) = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
        return int(pid)

    def close(self) -> None:
        server = int(self.ask("pid"))
        self._call("kill-server")
        deadline = time.monotonic() + PATIENCE_S
        while Path(f"/proc/{server}").exists():
            assert time.monotonic() < deadline, "tmux does not end"
            time.sleep(0.02)


Open = Callable[[], Tmux]


@pytest.fixture
def open_terminal(home: Home) -> Iterator[Open]:
    """Opens terminals."""
    folders: list[Path] = []
    opened: list[Tmux] = []

    def open_one() -> Tmux:
        folders.append(Path(tempfile.mkdtemp(prefix="squib-")))  # pytest's are too deep for a socket
        opened.append(Tmux(folders[-1]))
        return opened[-1]

    try:
        yield open_one
    finally:
        for terminal in opened:
            terminal.close()
        for folder in folders:
            shutil.rmtree(folder)


@pytest.fixture
def terminal(open_terminal: Open) -> Tmux:
    return open_terminal()


@pytest.fixture(scope="module")
def web(home: Home) -> Iterator[VM]:
    with VM(name="web") as vm:
        yield vm


@pytest.fixture(autouse=True)
def no_shell_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "web" in request.fixturenames:
        web: VM = request.getfixturevalue("web")
        for info in web.processes():
            web.process(info.id).kill()


def connected(terminal: Tmux, command: str = "connect web") -> None:
    terminal.type(f"{SQUIB} {command}")
    terminal.shows(PROMPT)


def test_a_shell(web: VM, terminal: Tmux) -> None:
    connected(terminal)
    terminal.type("stty size")
    terminal.shows(r"^30 100$")
    terminal.resize(90, 25)
    terminal.type("stty size")
    terminal.shows(r"^25 90$")
    terminal.type("tty; echo ü-$((6*7))")
    terminal.shows(r"^/dev/pts/")
    terminal.shows(r"^ü-42$")
    terminal.type("exit 7")
    terminal.ends_sane(7)


def test_ctrl_c_stops_a_command_and_not_the_shell(web: VM, terminal: Tmux) -> None:
    connected(terminal)
    terminal.type("echo begun; sleep 1000")
    terminal.shows(r"^begun$")
    terminal.press("C-c")
    terminal.type("echo ended=$?")
    terminal.shows(r"^ended=130$")
    terminal.press("C-d")
    terminal.ends_sane(0)


def test_jobs_are_stopped_and_go_on(web: VM, terminal: Tmux) -> None:
    connected(terminal)
    terminal.type("grep -n .")
    terminal.type_line("one")
    terminal.shows("^1:one$")
    terminal.press("C-z")
    terminal.shows(r"Stopped +grep")
    terminal.type("fg")
    terminal.type_line("two")
    terminal.shows("^2:two$")
    terminal.press("C-d")
    terminal.shows(PROMPT)
    terminal.type("exit")
    terminal.ends_sane(0)


@pytest.mark.parametrize(("program", "shown", "leave"), [("vi", "nobody:x:65534", ":q"), ("less", "/etc/passwd", "q")])
def test_full_screen_programs(program: str, shown: str, leave: str, web: VM, terminal: Tmux) -> None:
    connected(terminal)
    terminal.type(f"{program} /etc/passwd")
    terminal.until_full_screen(True)
    terminal.shows(shown)
    terminal.type(leave)
    terminal.until_full_screen(False)
    terminal.type("echo closed=$?")
    terminal.shows("^closed=0$")
    terminal.type("exit")
    terminal.ends_sane(0)


def test_a_vm_that_is_killed_leaves_a_sane_terminal(home: Home, terminal: Tmux) -> None:
    with VM(name="doomed") as vm:
        terminal.type(f"{SQUIB} connect doomed")
        terminal.shows(r"^root@doomed:~#")
        terminal.type("vi /etc/passwd")
        terminal.until_full_screen(True)
        pid = vm.refresh().pid
        assert pid
        os.kill(pid, signal.SIGKILL)
        screen = terminal.shows(r"^squib: .*doomed.*")
        terminal.ends_sane(1)
        assert re.search(r"^squib: VM doomed is error", screen, re.MULTILINE), screen


def test_a_client_that_is_killed_can_be_joined_again_with_its_scrollback(web: VM, open_terminal: Open) -> None:
    first = open_terminal()
    connected(first)
    # A question that the terminal answers: what is shown again must not make it answer again.
    first.type(r"printf '\033[c'; read -rsd c answer; echo asked; kept=yes")
    first.shows(r"^asked$")
    first.type("seq 1000 1100")
    first.shows(r"^1100$")
    os.kill(first.client_pid(), signal.SIGKILL)
    second = open_terminal()
    detached = r"terminal, detached +running"
    second.type(f"until {SQUIB} ps web | grep -E '{detached}'; do :; done")
    second.shows(detached)
    second.clear()
    second.type(f"{SQUIB} attach web")
    second.shows(r"^1000$")
    second.shows(r"^1100\n" + PROMPT[1:])
    second.type("echo kept=$kept")
    assert "not found" not in second.shows(r"^root@web:~# echo kept=\$kept\nkept=yes$")
    second.type("exit 4")
    second.ends_sane(4)


def test_it_is_detached_by_a_key_and_joined_again(web: VM, terminal: Tmux) -> None:
    terminal.type(f"{SQUIB} exec -it web bash")
    terminal.shows(PROMPT)
    terminal.type("vi /etc/passwd")
    terminal.until_full_screen(True)
    terminal.press(DETACH)
    terminal.shows(r"^squib: detached; reattach with: squib attach web p\d+$")
    screen = terminal.ends_sane(0)
    process_id = re.findall(r"squib attach web (p\d+)", screen)[0]
    terminal.type(f"{SQUIB} attach --detach-keys ctrl-p,ctrl-q web {process_id}")
    terminal.until_full_screen(True)
    terminal.shows("nobody:x:65534")
    terminal.type(":q")
    terminal.until_full_screen(False)
    terminal.type("exit 6")
    terminal.ends_sane(6)


def test_it_outlives_the_engine(home: Home, web: VM, terminal: Tmux) -> None:
    connected(terminal)
    terminal.type("kept=yes; echo set")
    terminal.shows(r"^set\n" + PROMPT[1:])
    before = engine_pids(home)
    end_engine(home, signal.SIGKILL)
    terminal.type("echo kept=$kept")
    terminal.shows(r"^kept=yes$")
    assert before != engine_pids(home) != []
    terminal.type("exit 9")
    terminal.ends_sane(9)


def test_run_on_a_terminal(home: Home, terminal: Tmux) -> None:
    terminal.type(f"{SQUIB} run -it -- sh -c 'tty; stty size; exit 5'")
    terminal.shows(r"^/dev/pts/\d+\n30 100$")
    terminal.ends_sane(5)


def test_create_and_connect_leaves_the_vm(home: Home, terminal: Tmux) -> None:
    terminal.type(f"{SQUIB} create --name web2 --connect")
    try:
        terminal.shows(r"^root@web2:~#")
        terminal.type("exit 3")
        terminal.ends_sane(3)
        assert VM.from_id("web2").run("true").ok
    finally:
        subprocess.run([sys.executable, "-m", "squib", "rm", "web2"], check=True)


def test_a_running_program_goes_on_through_a_fork_and_its_copy_can_be_attached_to(web: VM, open_terminal: Open) -> None:
    if web.info.driver != "qemu":
        pytest.skip(f"{web.info.driver} saves no VMs")
    parent = open_terminal()
    connected(parent)
    parent.type("secret=parent; n=0; while read -r line; do n=$((n+1)); echo $n-$line; done; echo over=$secret")
    parent.type_line("one")
    parent.shows("^1-one$")
    [process] = web.processes()
    [fork] = web.fork(name="copied")
    try:
        parent.type_line("two")
        parent.shows("^2-two$")
        [copy] = fork.processes()
        assert (copy.id, copy.running, bool(copy.pty), copy.readers) == (process.id, True, True, 0)

        child = open_terminal()
        child.type(f"{SQUIB} attach copied {copy.id}")
        child.shows("^1-one$")  # its scrollback
        child.type_line("three")
        child.shows("^2-three$")  # it goes on from the fork, not from the parent
        assert "2-two" not in child.screen()
        child.press("C-d")
        child.shows("^over=parent$")
        child.type("exit 5")
        child.ends_sane(5)
        assert [found.running for found in fork.processes()] in ([], [False])
        assert fork.run("pgrep bash").stdout == ""

        parent.type_line("four")
        parent.shows("^3-four$")
        parent.press("C-d")
        parent.shows("^over=parent$")
        parent.type("exit 6")
        parent.ends_sane(6)
    finally:
        fork.delete()


def test_a_terminal_that_was_copied_into_a_fork_can_be_killed_there(web: VM, terminal: Tmux) -> None:
    if web.info.driver != "qemu":
        pytest.skip(f"{web.info.driver} saves no VMs")
    connected(terminal)
    terminal.type("echo begun; sleep 12345")
    terminal.shows("^begun$")
    [fork] = web.fork()
    try:
        [copy] = fork.processes()
        fork.process(copy.id).kill()
        assert fork.processes() == []
        assert fork.run("pgrep -f '^sleep 12345'").stdout == ""
        assert web.run("pgrep -f '^sleep 12345'").ok
        terminal.press("C-c")
        terminal.type("exit")
        terminal.ends_sane(130)
    finally:
        fork.delete()
