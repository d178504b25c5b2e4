"""`Process` and `AsyncProcess`: commands of the background, and that both are the same."""

import asyncio
import inspect
import threading
import typing
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from squib import (
    VM,
    AsyncVM,
    CommandNotFound,
    EngineClient,
    NoSuchProcess,
    NoTerminal,
    OutputChunk,
    PtySize,
    StdinClosed,
)
from squib.errors import AgentUnreachable, EngineUnavailable, InvalidArgument
from squib.protocol.frames import FrameKind, encode
from squib.sdk import aio_process
from squib.sdk.aio_process import AsyncProcess, AsyncStdin
from squib.sdk.command import exec_request
from squib.sdk.process import Process, Stdin
from tests.fakes.served import Served
from tests.fakes.values import exit_frame, make_process

pytestmark = pytest.mark.slow  # through an engine and a guest


@pytest.fixture
def vm(served: Served) -> VM:
    return VM.from_id("web")


def text(chunks: typing.Iterable[OutputChunk]) -> bytes:
    return b"".join(chunk.data for chunk in chunks)


def test_a_command_goes_on_while_nobody_looks_and_is_read_afterwards(vm: VM, served: Served) -> None:
    process = vm.spawn(["echo", "hello"])
    assert (process.info.argv, process.info.background, process.pid) == (["echo", "hello"], True, process.info.pid)
    end = process.wait()
    assert (end.exit_code, end.signal, end.timed_out) == (0, None, False)
    for _ in range(2):
        assert list(process) == [OutputChunk("stdout", b"hello\n", 0)]
    assert list(process.output(stdout_offset=4)) == [OutputChunk("stdout", b"o\n", 4)]
    assert not process.refresh().running
    assert list(vm.spawn(["err", "no"])) == [OutputChunk("stderr", b"no\n", 0)]
    assert served.agent.killed == []


def test_what_was_asked_for_is_what_the_guest_gets(vm: VM, served: Served) -> None:
    process = vm.spawn(
        ["tty"], env={"A": "1"}, cwd="/srv", user="u", sudo=True, timeout=60, pty=PtySize(rows=5, cols=6)
    )
    assert served.agent.processes[process.id].spec == {
        "argv": ["tty"], "env": {"A": "1"}, "cwd": "/srv", "user": "u", "sudo": True, "timeout_ms": 60_000,
        "pty": {"rows": 5, "cols": 6}, "background": True,
    }  # fmt: skip
    process.kill()
    process = vm.spawn(["tty"], pty=True)
    assert process.info.pty == PtySize(rows=24, cols=80)
    process.kill()
    assert vm.run(["env"], sudo=True).ok
    with pytest.raises(CommandNotFound):
        vm.spawn(["nosuch"])
    with pytest.raises(InvalidArgument):
        vm.spawn([])


def test_input_is_written_and_closed(vm: VM) -> None:
    process = vm.spawn(["cat"], stdin=True)
    process.stdin.write("é ")
    process.stdin.write(b"\xff" * 600_000)
    process.stdin.close()
    process.stdin.close()
    assert text(process) == "é ".encode() + b"\xff" * 600_000
    with pytest.raises(StdinClosed):
        process.stdin.write("late")
    with vm.spawn(["sleep"]) as deaf, pytest.raises(StdinClosed):
        deaf.stdin.write("x")


def test_a_terminal_is_talked_with(vm: VM) -> None:
    with vm.spawn(["tty"], pty=True) as process:
        seen = b""
        for chunk in process:
            seen += chunk.data
            if seen == b"$ ":
                process.resize(50, 132)
            elif seen.endswith(b"[50x132]"):
                process.stdin.write("exit 4\r")
        assert seen == b"$ [50x132]exit 4\r"
        assert process.wait().exit_code == 4
    with vm.spawn(["sleep"]) as process, pytest.raises(NoTerminal):
        process.resize(1, 1)


def test_waiting_has_a_limit_and_the_command_goes_on(vm: VM) -> None:
    with vm.spawn(["sleep"]) as process:
        with pytest.raises(TimeoutError, match=rf"process {process.id} did not exit within 0\.01 s; it is still"):
            process.wait(0.01)
        assert process.refresh().running
        process.signal(15)
        assert (process.wait().exit_code, process.wait(timeout=0).signal) == (143, 15)
        process.signal(15)


def test_a_process_is_killed_at_the_end_of_its_block(vm: VM, served: Served) -> None:
    with pytest.raises(ZeroDivisionError), vm.spawn(["sleep"]) as process:
        raise ZeroDivisionError
    assert served.agent.killed[-1] == process.id and process.id not in served.agent.processes
    end = process.wait()
    assert (end.exit_code, end.signal, process.info.running, process.info.exit_code) == (137, 9, False, 137)
    process.kill()
    with pytest.raises(NoSuchProcess):
        process.refresh()
    with vm.spawn(["exit", "3"]) as process:
        assert text(process) == b""
    assert process.wait().exit_code == 3


def test_another_signal_is_only_sent(vm: VM, served: Served) -> None:
    with vm.spawn(["sleep"]) as process:
        process.kill(signal=15)
        assert served.agent.killed[-1] == f"{process.id} signal 15"
        assert process.wait().signal == 15
        assert process.id in served.agent.processes


def test_processes_are_listed_and_found_by_whoever_knows_the_id(vm: VM) -> None:
    with vm.spawn(["sleep"]) as one, vm.spawn(["sleep"]) as two:
        listed = {info.id: info for info in VM.from_id("web").processes()}
        assert {one.id, two.id} <= listed.keys()
        found = vm.process(one.id)
        assert (found.id, found.info) == (one.id, listed[one.id])
        assert repr(found) == f"<Process {one.id} running>"
        found.kill()
        with pytest.raises(NoSuchProcess):
            one.wait()
    with pytest.raises(NoSuchProcess):
        vm.process("p999999")
    for no_id in ("../p1", "", "p1?none=1", "a/b"):
        with pytest.raises(InvalidArgument):
            vm.process(no_id)


def test_leaving_the_loop_detaches(vm: VM, served: Served) -> None:
    with vm.spawn(["spam"]) as process:
        for chunk in process:
            assert chunk.data.startswith(b"y\n")
            break
        readers = served.agent.processes[process.id].readers

        async def main() -> None:
            while readers:
                await asyncio.sleep(0.005)

        asyncio.run(asyncio.wait_for(main(), 10))
        assert process.refresh().running


def test_all_of_a_long_output_comes_in_order(vm: VM) -> None:
    process = vm.spawn(["flood", "4096"])
    end = 0
    output = bytearray()
    for chunk in process:
        assert chunk.offset == end
        end += len(chunk.data)
        output += chunk.data
    assert output == b"".join(b"%01023d\n" % number for number in range(4096))


@pytest.mark.anyio
async def test_asyncio_programs_do_the_same(served: Served) -> None:
    async with asyncio.timeout(20):
        vm = await AsyncVM.from_id("web")
        async with await vm.spawn(["cat"], stdin=True) as process:
            await process.stdin.write("hello")
            await process.stdin.close()
            assert [chunk.data async for chunk in process] == [b"hello"]
            assert (await process.wait()).exit_code == 0
            assert process.id in [info.id for info in await vm.processes()]
            assert (await vm.process(process.id)).info == await process.refresh()
        await vm.close()


class Delay:
    """The engine executes the requests that start with ``what`` at once, and keeps their answers back."""

    def __init__(self, served: Served, what: str) -> None:
        served.clean_up()
        served.requests.before_answer = self._before_answer
        self._what, self._loop = what, asyncio.get_running_loop()
        self.reached, self.go_on = asyncio.Event(), threading.Event()

    def _before_answer(self, what: str) -> None:
        if what.startswith(self._what):
            self._loop.call_soon_threadsafe(self.reached.set)
            assert self.go_on.wait(10)


@pytest.mark.parametrize("during", ["POST /vms/web/exec", "GET /vms/web/processes/p1"])
@pytest.mark.anyio
async def test_a_spawn_that_is_cancelled_leaves_no_process(served: Served, during: str) -> None:
    delay = Delay(served, during)
    async with asyncio.timeout(20), EngineClient() as engine:
        task = asyncio.create_task(aio_process.spawn(engine, "web", exec_request(["sleep", "9"])))
        await delay.reached.wait()
        task.cancel()
        await asyncio.sleep(0)
        delay.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert served.requests.made[-1] == "DELETE /vms/web/processes/p1"
    assert (served.agent.killed, served.agent.processes) == (["p1"], {})


@pytest.mark.anyio
async def test_a_block_that_is_cancelled_while_it_kills_its_process_kills_it_all_the_same(served: Served) -> None:
    delay = Delay(served, "DELETE")

    async def block(engine: EngineClient) -> None:
        async with await aio_process.spawn(engine, "web", exec_request(["sleep", "9"])):
            pass

    async with asyncio.timeout(20), EngineClient() as engine:
        task = asyncio.create_task(block(engine))
        await delay.reached.wait()
        task.cancel()
        await asyncio.sleep(0)
        delay.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert served.requests.made[-1] == "DELETE /vms/web/processes/p1"
    assert (served.agent.killed, served.agent.processes) == (["p1"], {})


# --- an engine that is lost --------------------------------------------------------------------------------------


class Restarted:
    """An engine whose connection breaks after each piece of output."""

    def __init__(self, output: bytes, *, local: bool = True, breaks: int = 1 << 30) -> None:
        self.output, self.breaks = output, breaks
        self.asked: list[str] = []
        self.client = EngineClient(url=None if local else "http://squib")
        self.client.stream = self._stream  # type: ignore[method-assign]

    def _stream(self, method: str, path: str, content: object = None, *, timeout_s: float | None = None) -> typing.Any:
        self.asked.append(path.rpartition("/")[2])

        @asynccontextmanager
        async def answer() -> AsyncIterator[typing.Any]:
            yield self

        return answer()

    async def aiter_raw(self) -> AsyncIterator[bytes]:
        start = int(self.asked[-1].partition("stdout=")[2].partition("&")[0] or len(self.output))
        if self.breaks > 0 and start < len(self.output):
            self.breaks -= 1
            yield encode(FrameKind.STDOUT, self.output[start : start + 2], start)
            raise EngineUnavailable("the connection broke")
        if start < len(self.output):
            yield encode(FrameKind.STDOUT, self.output[start:], start)
        yield exit_frame(3)

    def process(self) -> AsyncProcess:
        return AsyncProcess(self.client, "web", make_process("p1"))


@pytest.mark.anyio
async def test_output_goes_on_where_it_was_when_a_local_engine_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio_process, "_REATTACH_PAUSES_S", (0.0, 0.0))

    engine = Restarted(b"abcdefghij")
    process = engine.process()
    assert [(chunk.offset, chunk.data) async for chunk in process] == [
        (0, b"ab"), (2, b"cd"), (4, b"ef"), (6, b"gh"), (8, b"ij"),
    ]  # fmt: skip
    assert (await process.wait()).exit_code == 3
    assert len(engine.asked) == 6


@pytest.mark.anyio
async def test_it_is_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio_process, "_REATTACH_PAUSES_S", (0.0, 0.0))

    engine = Restarted(b"ab")

    async def never() -> AsyncIterator[bytes]:
        raise EngineUnavailable("the connection broke")
        yield b""

    engine.aiter_raw = never  # type: ignore[method-assign]
    with pytest.raises(EngineUnavailable):
        await engine.process().wait()
    assert len(engine.asked) == 3


@pytest.mark.anyio
async def test_a_remote_engine_that_is_lost_is_not_looked_for_again() -> None:
    engine = Restarted(b"abcd", local=False)
    with pytest.raises(EngineUnavailable):
        async for chunk in engine.process():
            assert chunk.data == b"ab"
    assert len(engine.asked) == 1


@pytest.mark.parametrize("frames", [b"", b"\x63" * 64, encode(FrameKind.STDOUT, b"x")])
@pytest.mark.anyio
async def test_output_that_is_none_or_has_no_end_is_an_error_of_the_guest(frames: bytes) -> None:
    engine = Restarted(b"")

    async def answer() -> AsyncIterator[bytes]:
        yield frames

    engine.aiter_raw = answer  # type: ignore[method-assign]
    with pytest.raises(AgentUnreachable):
        await engine.process().wait()


# --- Process is AsyncProcess, waited for --------------------------------------------------------------------------


def public(cls: type) -> dict[str, typing.Any]:
    return {name: value for name, value in vars(cls).items() if not name.startswith("_")}


@pytest.mark.parametrize(("sync", "asynchronous"), [(Process, AsyncProcess), (Stdin, AsyncStdin)])
def test_both_have_the_same_methods_with_the_same_parameters(sync: type, asynchronous: type) -> None:
    assert public(sync).keys() == public(asynchronous).keys()
    for name, value in public(sync).items():
        other = public(asynchronous)[name]
        assert inspect.getdoc(value) and inspect.getdoc(other), name
        if isinstance(value, property):
            assert isinstance(other, property)
            continue
        assert inspect.signature(value).parameters == inspect.signature(other).parameters, name
        if name != "output":
            assert typing.get_type_hints(value) == typing.get_type_hints(other), name
            assert inspect.iscoroutinefunction(other) and not inspect.iscoroutinefunction(value)
