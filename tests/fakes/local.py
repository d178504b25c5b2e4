"""Real engine processes with a fake driver, which clients start."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from squib.host import proc
from squib.sdk.local import ensure_engine
from tests.fakes.daemon import PROGRAM
from tests.fakes.engine import Rig
from tests.processes import engines, kill_engines, until, watchdogs


@contextlib.contextmanager
def fake_engines(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let clients start the engine with a fake driver. No engine is left after the block."""
    spawn = proc.spawn_daemon

    def spawn_fake(argv: Sequence[str], *, log_path: Path, pass_fds: Sequence[int] = ()) -> int:
        arguments = argv[argv.index(str(rig.home.root)) :]
        return spawn([*PROGRAM, *arguments], log_path=log_path, pass_fds=pass_fds)

    monkeypatch.setattr(proc, "spawn_daemon", spawn_fake)
    monkeypatch.setenv("SQUIB_IDLE_EXIT_S", "60")
    yield
    kill_engines(rig.home)


def client(rig: Rig) -> httpx.Client:
    transport = httpx.HTTPTransport(uds=str(rig.home.engine_socket))
    return httpx.Client(transport=transport, base_url="http://squib", timeout=20)


def start_engine(rig: Rig, *, with_vm: bool = True) -> int:
    """Start an engine with a VM ``web``; return its pid."""
    asyncio.run(ensure_engine(rig.home))
    if with_vm:
        body = {"config": rig.config.model_dump(exclude_unset=True) | {"name": "web"}, "start": True}
        with client(rig) as http:
            assert http.post("/v1/vms", json=body).status_code == 201
    [pid] = engines(rig.home)
    until(lambda: len(watchdogs(rig.home)) == 1, "there is no watchdog")
    return pid
