"""Measure connections under strain.

    python -m bench.connections idle --requests 100000 --clients 1000
    python -m bench.connections flood --connections 2000

``idle`` uses idle connections at the moment of their timeout, ``flood`` opens thousands that never send a request. Both
start an engine of their own, without VMs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

from squib.errors import NotFound, SquibError
from squib.host import limits
from squib.paths import Home
from squib.sdk import transport
from squib.sdk.client import EngineClient

IDLE_S = (4.9, 5.1)


@contextlib.asynccontextmanager
async def engine(*options: str) -> AsyncIterator[tuple[Home, str]]:
    """Start an engine; yield its new state directory and its first output."""
    with tempfile.TemporaryDirectory(prefix="squib-bench-") as folder:
        home = Home(Path(folder) / "home")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "squib", "serve", *options),
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"SQUIB_HOME": str(home.root)},
        )
        assert process.stdout
        printed = (await process.stdout.readline()).decode()
        if options:
            printed += (await process.stdout.readline()).decode() + (await process.stdout.readline()).decode()
        try:
            yield home, printed
        finally:
            process.terminate()
            await process.wait()


async def idle(requests: int, clients: int) -> int:
    """Send requests over idle connections; return how many failed.

    The connections have been idle for about 5 s. Half of the clients keep their connections for longer than that, as
    other programs may; the others are squib's. Every second request is a POST, which is not simply repeated.
    """
    failures: list[str] = []
    done = 0

    async def client(home: Home, number: int) -> None:
        nonlocal done
        async with EngineClient(home=home) as engine:
            transport._KEEPALIVE_S = 60.0 if number % 2 else 4.0
            await asyncio.sleep(random.uniform(0, IDLE_S[1]))
            for turn in range(requests // clients):
                try:
                    if turn % 2:
                        await engine.info()
                    else:
                        with contextlib.suppress(NotFound):
                            await engine.pause_vm("nosuch")
                except SquibError as error:
                    failures.append(error.message)
                done += 1
                await asyncio.sleep(random.uniform(*IDLE_S))

    async with engine() as (home, _):
        started = time.monotonic()
        await asyncio.gather(*(client(home, number) for number in range(clients)))
    print(f"{done} requests, {clients} clients, {time.monotonic() - started:.0f} s: {len(failures)} failed")
    for message in failures[:5]:
        print("  ", message)
    return len(failures)


async def flood(connections: int, commands: int) -> int:
    """Time commands while TCP connections are open that send no request.

    Returns 0 if the commands take less than twice as long.
    """

    async def command(home: Home) -> float:
        started = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "squib", "ls"),
            stdout=asyncio.subprocess.DEVNULL,
            env=os.environ | {"SQUIB_HOME": str(home.root)},
        )
        assert await process.wait() == 0
        return time.monotonic() - started

    async def one(host: str, port: int, opened: list[int]) -> None:
        while True:  # an engine that closes it gets another
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(b"GET /v1/engine HT")
                opened[0] += 1
                with contextlib.suppress(OSError):
                    await reader.read()
                writer.close()
            await asyncio.sleep(0.1)

    async with engine("--listen", "127.0.0.1:0") as (home, printed):
        url = printed.partition("SQUIB_URL=")[2].split()[0]
        host, port = url.removeprefix("http://").split(":")
        before = statistics.median([await command(home) for _ in range(commands)])
        opened = [0]
        tasks: list[asyncio.Task[None]] = []
        work: Coroutine[Any, Any, None]
        for _ in range(connections):
            work = one(host, int(port), opened)
            tasks.append(asyncio.create_task(work))
        await asyncio.sleep(2)
        during = [await command(home) for _ in range(commands)]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        lines = len(home.engine_log.read_text().splitlines())
    print(
        f"squib ls: {before * 1000:.0f} ms alone, {statistics.median(during) * 1000:.0f} ms (at most "
        f"{max(during) * 1000:.0f}) beside {connections} connections, opened {opened[0]} times; log: {lines} lines"
    )
    return int(statistics.median(during) >= 2 * before)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.connections", description=__doc__)
    what = parser.add_subparsers(dest="what", required=True)
    idle_options = what.add_parser("idle")
    idle_options.add_argument("--requests", type=int, default=10_000)
    idle_options.add_argument("--clients", type=int, default=500)
    flood_options = what.add_parser("flood")
    flood_options.add_argument("--connections", type=int, default=2000)
    flood_options.add_argument("--commands", type=int, default=20)
    options = parser.parse_args()
    limits.raise_file_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 4096, "too few descriptors"
    if options.what == "idle":
        sys.exit(bool(asyncio.run(idle(options.requests, options.clients))))
    sys.exit(asyncio.run(flood(options.connections, options.commands)))


if __name__ == "__main__":
    main()
