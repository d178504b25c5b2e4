"""Readers that stop, and many streams at once: nothing is lost, and nothing grows."""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from squib import VM, AsyncVM, EngineClient
from squib.paths import Home
from squib.sdk.command import exec_request, start_command
from tests.vm.conftest import engine_pids
from tests.vm.test_exec import rss_mib

STOP_S = 3.0
"""For how long a reader stops. What is not bounded would be full long before."""
SIZE = 64 << 20
STREAMS = 50
UNREAD = 80
TRANSFERS = 200
_FILE = "/root/random"
_GROWTH_MIB = 20
_AVAILABLE_MIB = 8
_AVAILABLE_AFTER_TRANSFERS_MIB = 24

Stream = Callable[[EngineClient, AsyncVM], AsyncIterator[bytes]]


@pytest.fixture(scope="module")
def random_sha256(shared_vm: VM) -> Iterator[str]:
    """The digest of 64 MiB of random bytes in the guest's `_FILE`."""
    shared_vm.run(f"head -c {SIZE} /dev/urandom > {_FILE}", check=True)
    yield shared_vm.run(["sha256sum", _FILE], check=True).stdout.split()[0]
    shared_vm.run(["rm", _FILE], check=True)


async def most_rss_mib(pid: int) -> float:
    """The largest RSS of a process in the next `STOP_S` seconds."""
    end = time.monotonic() + STOP_S
    most = rss_mib(pid)
    while time.monotonic() < end:
        await asyncio.sleep(0.1)
        most = max(most, rss_mib(pid))
    return most


def available_mib(vm: VM) -> int:
    """What the guest's programs could still take of its memory."""
    return int(vm.run("grep MemAvailable /proc/meminfo", check=True).stdout.split()[1]) >> 10


async def command_output(engine: EngineClient, vm: AsyncVM) -> AsyncIterator[bytes]:
    async with start_command(engine, vm.vm_id, exec_request(["cat", _FILE])) as command:
        async for frame in command.output():
            yield frame.payload


async def file_download(engine: EngineClient, vm: AsyncVM) -> AsyncIterator[bytes]:
    async for chunk in vm.files.stream(_FILE):
        yield chunk


@pytest.mark.parametrize("stream", [command_output, file_download])
def test_a_reader_that_stops_loses_nothing_and_fills_nothing(
    shared_vm: VM, home: Home, random_sha256: str, stream: Stream
) -> None:
    (pid,) = engine_pids(home)

    async def main() -> None:
        async with EngineClient() as engine:
            vm = await AsyncVM.from_id(shared_vm.vm_id, engine=engine)
            before = rss_mib(pid)
            digest, size, stopped = hashlib.sha256(), 0, False
            async for piece in stream(engine, vm):
                digest.update(piece)
                size += len(piece)
                if size > SIZE // 4 and not stopped:
                    stopped = True
                    assert await most_rss_mib(pid) - before < _GROWTH_MIB
                    assert (await vm.run(["echo", "others go on"])).output == "others go on\n"
            assert (size, digest.hexdigest()) == (SIZE, random_sha256)

    asyncio.run(main())


def test_a_guest_that_does_not_read_fills_nothing_and_gets_all(shared_vm: VM, home: Home) -> None:
    (pid,) = engine_pids(home)
    piece = os.urandom(1 << 20)
    digest = hashlib.sha256(piece * (SIZE >> 20)).hexdigest()
    script = "read go < /root/go; exec sha256sum"

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(SIZE >> 20):
            yield piece

    async def main() -> None:
        async with EngineClient() as engine:
            vm = await AsyncVM.from_id(shared_vm.vm_id, engine=engine)
            await vm.run("mkfifo /root/go", check=True)
            before = rss_mib(pid)
            request = exec_request(script)
            async with start_command(engine, vm.vm_id, request, stdin=pieces()) as command:
                assert await most_rss_mib(pid) - before < _GROWTH_MIB
                await vm.run("echo > /root/go; rm /root/go", check=True)
                output = b"".join([frame.payload async for frame in command.output()])
            assert output.split()[0].decode() == digest

    asyncio.run(main())


def test_fifty_commands_stream_at_once(shared_vm: VM, random_sha256: str) -> None:
    size = SIZE // STREAMS

    async def main() -> None:
        async with EngineClient() as engine:
            vm = await AsyncVM.from_id(shared_vm.vm_id, engine=engine)
            whole = await vm.files.read(_FILE)
            assert hashlib.sha256(whole).hexdigest() == random_sha256

            async def part(number: int) -> bytes:
                place = [f"skip={number * size}", f"count={size}", "iflag=skip_bytes,count_bytes"]
                result = await vm.run(["dd", f"if={_FILE}", "bs=64K", *place, "status=none"], check=True)
                return result.stdout_bytes

            parts = await asyncio.gather(*map(part, range(STREAMS)))
            wrong = [n for n, data in enumerate(parts) if data != whole[n * size : (n + 1) * size]]
            assert wrong == []

    asyncio.run(main())


def test_output_that_nobody_reads_does_not_fill_the_guest(shared_vm: VM) -> None:
    size = 2 << 20
    loud = [shared_vm.spawn(["head", "-c", str(size), "/dev/zero"]) for _ in range(UNREAD)]
    available = available_mib(shared_vm)
    assert [process.wait(timeout=60).exit_code for process in loud] == [0] * UNREAD
    assert available > _AVAILABLE_MIB


def test_many_small_transfers_at_once_do_not_fill_the_guest(vm: VM) -> None:
    data = os.urandom(1 << 20)

    async def main() -> None:
        async with EngineClient() as engine:
            guest = await AsyncVM.from_id(vm.vm_id, engine=engine)
            await guest.files.write("/root/f", data)
            read = await asyncio.gather(*(guest.files.read("/root/f") for _ in range(TRANSFERS)))
            assert read == [data] * TRANSFERS
            await asyncio.gather(*(guest.files.write(f"/root/{i}", data) for i in range(TRANSFERS)))

    asyncio.run(main())
    assert available_mib(vm) > _AVAILABLE_AFTER_TRANSFERS_MIB
