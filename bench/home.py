"""A fresh state directory for a bench, with the user's kernel and images."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from squib import EngineClient, VMConfig
from squib.cli.actions.launch import ensure_assets
from squib.cli.render import Output
from squib.host import processes
from squib.host.processes import ProcessIdentity
from squib.paths import Home
from squib.sdk.local import engine_answers

_END_TIMEOUT_S = 20.0


@contextlib.contextmanager
def bench_home() -> Iterator[Home]:
    """Create a state directory that links to the user's kernel, images and Firecracker.

    They are hard links. Kernel and images are built first if missing. However the block ends, no VM, engine or file of
    the directory is left.
    """
    own = Home.from_environment()
    _build_missing(own)
    with tempfile.TemporaryDirectory(prefix="squib-bench-") as folder:
        home = Home(Path(folder))
        for ours, theirs in ((home.images, own.images), (home.kernels, own.kernels), (home.bin, own.bin)):
            if theirs.is_dir():
                shutil.copytree(theirs, ours, symlinks=True, copy_function=_link_or_copy)
        try:
            yield home
        finally:
            with _undisturbed():
                _clean_up(home)


def end_engine(home: Home) -> None:
    """End the engine of a state directory, if one runs, and wait for it.

    The engine's VMs keep running.
    """
    for pid in processes.holders(home.engine_lock):
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                if pid in processes.holders(home.engine_lock):  # the descriptor is of the process that was meant
                    _end(pidfd)
            finally:
                os.close(pidfd)


def _end(pidfd: int) -> None:
    ended = select.poll()
    ended.register(pidfd, select.POLLIN)
    for number in (signal.SIGTERM, signal.SIGKILL):
        signal.pidfd_send_signal(pidfd, number)
        if ended.poll(_END_TIMEOUT_S * 1000):
            return


def _build_missing(own: Home) -> None:
    """Build the kernel and the image in the user's cache if it lacks them.

    An engine that was started for this is ended again.
    """
    ran = own.root.is_dir() and engine_answers(own)

    async def build() -> None:
        async with EngineClient(home=own) as engine:
            await ensure_assets(Output(), engine, VMConfig())

    asyncio.run(build())
    if not ran:
        end_engine(own)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def _clean_up(home: Home) -> None:
    """Delete every VM through the engine, and end the engine."""
    if not home.database.exists():
        return

    async def delete_all() -> None:
        async with EngineClient(home=home) as engine:
            for vm in await engine.vms():
                await engine.delete_vm(vm.vm_id)

    try:
        asyncio.run(delete_all())
    finally:
        end_engine(home)
        for folder in home.vms.iterdir():
            processes.kill(ProcessIdentity(folder / "vmm.lock"))


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C in the block, because a second one would leave VMs behind.

    SIGTERM is ignored too.
    """
    former = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
