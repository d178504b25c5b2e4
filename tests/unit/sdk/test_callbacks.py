"""A caller's code that ends with any exception: the caller gets it, and squib's thread goes on."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from squib import VM
from squib.sdk.portal import Portal
from tests.fakes.files import FakeFiles
from tests.fakes.served import Served

pytestmark = pytest.mark.slow  # through an engine and a guest


class Own(BaseException):
    """An exception of the caller's."""


ENDS = [
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    Own("own"),
    ValueError("value"),
]


class Raises:
    """Raises ``end`` whatever is done with it. It counts how often."""

    def __init__(self, end: BaseException) -> None:
        self.end = end
        self.times = 0

    def __call__(self, *_: object) -> NoReturn:
        self.times += 1
        raise self.end

    def read(self, size: int) -> bytes:
        self()

    def generate(self) -> Iterator[bytes]:
        yield b"first"
        self()

    async def agenerate(self) -> AsyncIterator[bytes]:
        yield b"first"
        self()


Act = Callable[[VM, Raises, Path], object]


def _in_a_file(vm: VM, raises: Raises, here: Path) -> None:
    with vm.files.open("/f", "wb") as file:
        file.write(b"data")
        raises()


def _while_reading(vm: VM, raises: Raises, here: Path) -> None:
    for _ in vm.files.stream("/there"):
        raises()


def _while_it_runs(vm: VM, raises: Raises, here: Path) -> None:
    with vm.spawn(["spam"]) as process:
        for _ in process:
            raises()


def _upload(vm: VM, raises: Raises, here: Path) -> None:
    (here / "source").write_bytes(bytes(1 << 20))
    vm.files.upload(here / "source", "/target", on_progress=raises)


def _upload_directory(vm: VM, raises: Raises, here: Path) -> None:
    (here / "d").mkdir()
    (here / "d" / "source").write_bytes(bytes(1 << 20))
    vm.files.upload(here / "d", "/target", on_progress=raises)


ACTS: dict[str, Act] = {
    "on_stdout": lambda vm, raises, here: vm.run(["spam"], on_stdout=raises),
    "on_stderr": lambda vm, raises, here: vm.run(["err", "x"], on_stderr=raises),
    "on_stdout with input": lambda vm, raises, here: vm.run(["cat"], input=bytes(1 << 20), on_stdout=raises),
    "a generator": lambda vm, raises, here: vm.files.write("/f", raises.generate()),
    "an asynchronous generator": lambda vm, raises, here: vm.files.write("/f", raises.agenerate()),
    "a file": lambda vm, raises, here: vm.files.write("/f", raises),  # type: ignore[arg-type]
    "an open file": _in_a_file,
    "a stream": _while_reading,
    "output": _while_it_runs,
    "upload": _upload,
    "upload of a directory": _upload_directory,
    "download": lambda vm, raises, here: vm.files.download("/there", here, on_progress=raises),
    "download of a directory": lambda vm, raises, here: vm.files.download("/", here / "new", on_progress=raises),
}


@pytest.fixture
def vm(served: Served, tmp_path: Path) -> VM:
    guest = tmp_path / "guest"
    guest.mkdir()
    (guest / "there").write_bytes(bytes(3 << 20))
    served.agent.files = FakeFiles(guest)
    return VM.from_id("web")


@pytest.mark.parametrize("end", ENDS, ids=lambda end: type(end).__module__ + "." + type(end).__name__)
@pytest.mark.parametrize("what", ACTS)
def test_the_caller_gets_what_its_code_raised(
    vm: VM, served: Served, tmp_path: Path, what: str, end: BaseException
) -> None:
    thread = Portal.get()._thread
    raises = Raises(end)
    (here := tmp_path / "here").mkdir()
    with pytest.raises(type(end)) as caught:
        in_time(lambda: ACTS[what](vm, raises, here))
    assert str(caught.value) == str(end)
    assert raises.times == 1
    assert Portal.get()._thread is thread and thread.is_alive()
    assert in_time(lambda: vm.run(["echo", "on"]).stdout) == "on\n"
    in_time(lambda: until(lambda: not any(process.running for process in vm.processes())))
    assert not (tmp_path / "guest" / "f").exists() and list((tmp_path / "guest").rglob(".squib*")) == []


def in_time(work: Callable[[], Any]) -> Any:
    """Do work that must not block for ever, in a thread of its own."""
    done: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 (the test's thread gets it)
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result(timeout=10)


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        pass


def test_a_callback_that_raises_stop_iteration(vm: VM, tmp_path: Path) -> None:
    """As in ``next(iterator)``. Python makes it a RuntimeError in every generator and coroutine."""
    for act in (ACTS["on_stdout"], ACTS["upload"], ACTS["download of a directory"], ACTS["a generator"]):
        with pytest.raises(RuntimeError, match="StopIteration"):
            in_time(lambda act=act: act(vm, Raises(StopIteration()), tmp_path))
    assert in_time(lambda: vm.run(["echo", "on"]).stdout) == "on\n"
