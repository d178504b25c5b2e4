"""``connect``, ``attach`` and ``exec -t`` as processes on a terminal: what passes, and that it is sane afterwards."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from squib.errors import AgentUnreachable, NoShell, WrongState
from squib.models import VMState
from tests.fakes.terminals import FakeTerminals, Peer, Person
from tests.fakes.values import TERMINAL, make_process, make_vm

pytestmark = pytest.mark.slow  # each is a process or two

EVERY_BYTE_BUT_THE_KEY = bytes(range(256)).replace(b"\x1d", b"")
FULL_SCREEN = b"\x1b[?1049h\x1b[?25l\x1b[?2004h\x1b[?1000h"
NO_FULL_SCREEN = b"\x1b[?25h\x1b[?1000l\x1b[?2004l\x1b[?1049l"


@pytest.fixture
def terminals() -> Iterator[FakeTerminals]:
    with FakeTerminals().running() as terminals:
        yield terminals


Sit = Callable[..., Person]


@pytest.fixture
def sit(terminals: FakeTerminals) -> Iterator[Sit]:
    """Starts squib on a terminal: ``sit("connect", "web")``."""
    with ExitStack() as stack:

        def start(*words: str, stdout: int | None = None) -> Person:
            person = Person(*words, environment=terminals.environment, stdout=stdout)
            stack.callback(person.close)
            return person

        yield start


def test_a_shell_from_its_prompt_to_its_end(terminals: FakeTerminals, sit: Sit) -> None:
    first: list[dict[str, object]] = []

    def shell(peer: Peer) -> None:
        first.append(peer.first)
        peer.begin()
        peer.print(b"$ ")
        assert peer.read_until(b"\xff") == EVERY_BYTE_BUT_THE_KEY
        peer.print(bytes(range(256)))
        peer.exit(7)

    terminals.scripts = [shell]
    person = sit("connect", "-u", "dev", "--sudo", "-w", "/srv", "-e", "A=1", "web")
    assert b"detach with ctrl-]" in person.read_until(b"$ ")
    assert person.is_raw
    person.type(EVERY_BYTE_BUT_THE_KEY)
    assert person.wait() == 7
    assert person.seen.endswith(bytes(range(256)))
    assert not person.is_raw
    (start,) = first
    assert start == {
        "type": "start", "login": True, "user": "dev", "sudo": True, "cwd": "/srv", "env": {"A": "1", "TERM": "xterm"},
        "rows": 30, "cols": 100,
    }  # fmt: skip


def test_the_window_may_change_its_size(terminals: FakeTerminals, sit: Sit) -> None:
    def shell(peer: Peer) -> None:
        peer.begin()
        peer.print(b"$ ")
        assert peer.next_control() == {"type": "resize", "rows": 40, "cols": 132}
        peer.exit()

    terminals.scripts = [shell]
    person = sit("exec", "-it", "web", "bash")
    person.read_until(b"$ ")
    person.resize(40, 132)
    assert person.wait() == 0


def prompt(peer: Peer) -> None:
    peer.begin()
    peer.print(FULL_SCREEN + b"ready")


def waits(peer: Peer) -> None:
    prompt(peer)
    peer.until_left()


def loses_its_vm(peer: Peer) -> None:
    prompt(peer)
    peer.read_until(b"x")
    peer.fail(AgentUnreachable("the VM ended"))


def has_stopped(peer: Peer) -> None:
    peer.fail(WrongState("VM web is error: the VMM was killed by signal 9", hint="squib start web"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_client_that_is_ended_leaves_a_sane_terminal(
    number: signal.Signals, terminals: FakeTerminals, sit: Sit
) -> None:
    terminals.scripts = [waits]
    person = sit("connect", "web")
    person.read_until(b"ready")
    person.send(number)
    assert person.wait() == 128 + number
    assert not person.is_raw
    said = person.seen.partition(b"ready")[2]
    assert NO_FULL_SCREEN in said and b"squib attach web p7" in said


def test_a_client_is_ended_even_if_its_terminal_takes_no_output(terminals: FakeTerminals, sit: Sit) -> None:
    def floods(peer: Peer) -> None:
        prompt(peer)
        peer.read_until(b"x")
        peer.print(b"y" * 500_000)
        peer.print(b"y" * 500_000)
        peer.until_left()

    terminals.scripts = [floods]
    person = sit("connect", "web")
    person.read_until(b"ready")
    person.type(b"x")
    person.read_until(b"yyy")  # and no more
    person.send(signal.SIGTERM)
    person.process.wait(timeout=10)
    assert not person.is_raw


def test_a_vm_that_is_lost_leaves_a_sane_terminal_and_its_reason(terminals: FakeTerminals, sit: Sit) -> None:
    terminals.scripts = [loses_its_vm, has_stopped]
    person = sit("connect", "web")
    person.read_until(b"ready")
    person.type(b"x")
    assert person.wait() == 1
    assert not person.is_raw
    said = person.seen.partition(b"ready")[2]
    assert NO_FULL_SCREEN in said
    assert said.endswith(b"\r\nsquib: VM web is error: the VMM was killed by signal 9\r\nhint: squib start web\r\n")


@pytest.mark.parametrize(
    ("state", "said"), [(VMState.STOPPING, b"squib: VM web is stopping\r\n"), (VMState.RUNNING, b"")]
)
def test_a_program_that_a_signal_ends_leaves_a_sane_terminal(
    state: VMState, said: bytes, terminals: FakeTerminals, sit: Sit
) -> None:
    def shell(peer: Peer) -> None:
        prompt(peer)
        peer.say(type="exit", exit_code=137, signal=9, timed_out=False, duration_s=0.5)

    terminals.scripts = [shell]
    terminals.vm = make_vm("vm-1", name="web", state=state)
    person = sit("connect", "web")
    assert person.wait() == 137
    assert not person.is_raw
    after = person.seen.partition(b"ready")[2]
    assert after.startswith(NO_FULL_SCREEN) and after.endswith(b"\r\n" + said)


def test_a_program_that_ends_by_itself_has_its_way_with_the_terminal(terminals: FakeTerminals, sit: Sit) -> None:
    def program(peer: Peer) -> None:
        prompt(peer)
        peer.exit(1)

    terminals.scripts = [program]
    person = sit("exec", "-t", "web", "tput", "civis")
    assert person.wait() == 1
    assert person.seen == FULL_SCREEN + b"ready"


def test_the_window_may_be_closed(terminals: FakeTerminals, sit: Sit) -> None:
    left = threading.Event()

    def shell(peer: Peer) -> None:
        waits(peer)
        left.set()

    terminals.scripts = [shell]
    person = sit("connect", "web")
    person.read_until(b"ready")
    person.hang_up()
    assert left.wait(10)
    assert person.process.wait(timeout=10) in (0, 128 + signal.SIGHUP)


def test_output_that_nobody_reads_ends_it(terminals: FakeTerminals, sit: Sit) -> None:
    read_end, write_end = os.pipe()
    left = threading.Event()

    def shell(peer: Peer) -> None:
        waits(peer)
        left.set()

    terminals.scripts = [shell]
    person = sit("connect", "web", stdout=write_end)
    os.close(write_end)
    assert os.read(read_end, 1000) == FULL_SCREEN + b"ready"
    assert person.is_raw
    os.close(read_end)
    assert left.wait(10)
    assert person.wait() == 128 + signal.SIGPIPE
    assert not person.is_raw


@pytest.mark.parametrize(
    ("flags", "typed", "passed"),
    [([], b"ls\x1d", b"ls"), (["--detach-keys", "ctrl-p,ctrl-q"], b"\x10\x10x\x10\x11rest", b"\x10\x10x")],
)
def test_detached_by_its_keys(
    flags: list[str], typed: bytes, passed: bytes, terminals: FakeTerminals, sit: Sit
) -> None:
    got = bytearray()
    left = threading.Event()

    def shell(peer: Peer) -> None:
        waits(peer)
        got.extend(peer.typed)
        left.set()

    terminals.scripts = [shell]
    person = sit("connect", *flags, "web")
    person.read_until(b"ready")
    person.type(typed)
    assert person.wait() == 0
    assert not person.is_raw
    said = person.seen.partition(b"ready")[2]
    assert NO_FULL_SCREEN in said and said.endswith(b"squib: detached; reattach with: squib attach web p7\r\n")
    assert left.wait(10) and bytes(got) == passed


def test_without_detach_keys_all_is_typed(terminals: FakeTerminals, sit: Sit) -> None:
    def shell(peer: Peer) -> None:
        prompt(peer)
        assert peer.read_until(b"x") == b"\x1dx"
        peer.exit()

    terminals.scripts = [shell]
    person = sit("connect", "--detach-keys", "", "web")
    assert b"detach" not in person.read_until(b"ready")
    person.type(b"\x1dx")
    assert person.wait() == 0


def test_a_lost_connection_is_made_again_where_it_broke_off(terminals: FakeTerminals, sit: Sit) -> None:
    attached: list[dict[str, object]] = []

    def before(peer: Peer) -> None:
        peer.begin()
        peer.print(b"one ")
        peer.read_until(b"x")
        peer.drop()

    def after(peer: Peer) -> None:
        attached.append(peer.first)
        peer.begin()
        peer.say(type="offset", offset=4)
        peer.print(b"two")
        assert peer.read_until(b"y") == b"y"
        peer.exit(3)

    terminals.scripts = [before, after]
    person = sit("exec", "-t", "web", "sh")
    person.read_until(b"one ")
    person.type(b"x")
    person.read_until(b"one two")
    person.type(b"y")
    assert person.wait() == 3
    assert person.seen == b"one two"
    assert attached == [{"type": "attach", "id": "p7", "offset": 4, "rows": 30, "cols": 100}]


def test_an_engine_that_takes_its_time_to_come_back_is_told_of(terminals: FakeTerminals, sit: Sit) -> None:
    def before(peer: Peer) -> None:
        prompt(peer)
        peer.read_until(b"x")
        terminals.is_down = True
        peer.drop()

    def after(peer: Peer) -> None:
        peer.begin()
        assert peer.read_until(b"typed meanwhile") == b"typed meanwhile"
        peer.exit()

    terminals.scripts = [before, after]
    person = sit("connect", "web")
    person.read_until(b"ready")
    person.type(b"x")
    person.read_until(b"squib: connection lost; reconnecting")
    person.type(b"typed meanwhile")
    terminals.is_down = False
    person.read_until(b"squib: reconnected\r\n")
    assert person.wait() == 0
    assert not person.is_raw


def test_it_can_be_detached_while_the_connection_is_lost(terminals: FakeTerminals, sit: Sit) -> None:
    def shell(peer: Peer) -> None:
        prompt(peer)
        peer.read_until(b"x")
        terminals.is_down = True
        peer.drop()

    terminals.scripts = [shell]
    person = sit("connect", "web")
    person.read_until(b"ready")
    person.type(b"x")
    person.read_until(b"connection lost")
    person.type(b"\x1d")
    assert person.wait() == 0
    assert not person.is_raw


def test_an_engine_that_does_not_come_back(terminals: FakeTerminals, sit: Sit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fakes.terminals.PATIENCE_S", 30)

    def shell(peer: Peer) -> None:
        prompt(peer)
        peer.read_until(b"x")
        terminals.is_down = True
        peer.drop()

    terminals.scripts = [shell]
    person = sit("connect", "web")
    person.read_until(b"ready")
    person.type(b"x")
    assert person.wait() == 1
    assert not person.is_raw
    assert b"was lost and could not be restored within 15 s" in person.seen
    assert person.seen.endswith(b"hint: squib attach web p7\r\n")


def test_a_client_that_was_stopped_makes_its_terminal_raw_again(terminals: FakeTerminals, sit: Sit) -> None:
    def shell(peer: Peer) -> None:
        prompt(peer)
        assert peer.next_control()["cols"] == 90
        peer.exit()

    terminals.scripts = [shell]
    person = sit("connect", "web")
    person.read_until(b"ready")
    person.send(signal.SIGSTOP)
    os.waitid(os.P_PID, person.process.pid, os.WSTOPPED | os.WNOWAIT)
    person.make_sane()
    person.resize(30, 90)
    person.send(signal.SIGCONT)
    assert person.wait() == 0
    assert not person.is_raw


def test_an_image_without_a_shell_is_told_with_what_to_do(terminals: FakeTerminals, sit: Sit) -> None:
    terminals.scripts = [lambda peer: peer.fail(NoShell("the image has no shell"))]
    person = sit("connect", "web")
    assert person.wait() == 127
    assert b"squib: the image has no shell\r\nhint: squib exec -it web PROGRAM" in person.seen
    assert not person.is_raw


def test_what_is_shown_again_asks_the_terminal_nothing(terminals: FakeTerminals, sit: Sit) -> None:
    attached: list[dict[str, object]] = []

    def shell(peer: Peer) -> None:
        attached.append(peer.first)
        peer.begin()
        peer.say(type="offset", offset=100)
        peer.print(b"old\x1b[c\x1b[6")
        peer.print(b"n old\x1b[6nnew\x1b[6n")
        peer.exit()

    past = 100 + len(b"old\x1b[c\x1b[6n old")
    process = make_process("p7", **TERMINAL, stdout={"start": 100, "end": past})
    terminals.processes = [process.model_dump(mode="json")]
    terminals.scripts = [shell]
    person = sit("attach", "web")
    assert person.wait() == 0
    assert person.seen.endswith(b"old old\x1b[6nnew\x1b[6n")
    assert attached == [{"type": "attach", "id": "p7", "offset": 0, "rows": 30, "cols": 100}]
