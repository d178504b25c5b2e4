"""Initramfs archives: the agent as ``/init``, and the modules it loads.

How the agent loads them is in ``protocol/agent.md``.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from squib.artifacts.building import Build, no_progress
from squib.artifacts.checked import build_file, record_path, remove_file
from squib.artifacts.stamp import Stamp
from squib.errors import InvalidArgument
from squib.kernels import cpio, modules
from squib.kernels.catalog import Kernel
from squib.kernels.modules import Module
from squib.models import OnProgress, Progress
from squib.paths import Home

_FORMAT_VERSION = 1
_KEY_DIGITS = 16
_SUFFIX = ".cpio"


class InitramfsStore:
    """The cache's initramfs archives, one per kernel, agent and modules.

    Archives are not compressed: a guest needs as long to decompress one as to read the plain one. An archive's name is
    ``<kernel>-<agent>-v<format>.<modules>.cpio``, with three truncated digests. Guests that load
    extra modules have archives of their own, such as ``….nested.cpio``, so that others neither unpack nor load them.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._agents: dict[tuple[Path, Stamp], str] = {}

    async def ensure(
        self, kernel: Kernel, agent: Path, on_progress: OnProgress = no_progress, *, extras: Collection[str] = ()
    ) -> Path:
        """Return the archive for a kernel and an agent; build it if absent.

        ``extras`` names the sets of `EXTRA_MODULES` that the guest also loads.

        Takes milliseconds. Step: ``initramfs``, if the archive is built.

        Raises `InvalidArgument` if the agent is missing or a module is damaged, `DiskFull`.
        """
        agent_key = await asyncio.to_thread(self._agent_key, agent)
        if kernel.path.is_relative_to(self._home.kernels):
            content_key = kernel.digest.removeprefix("sha256:")[:_KEY_DIGITS]  # it covers the modules
        else:
            content_key = _modules_key(await asyncio.to_thread(_load_modules, kernel, extras))
        suffix = "".join(f".{extra}" for extra in sorted(extras)) + _SUFFIX
        name = f"{_kernel_key(kernel.path)}-{agent_key}-v{_FORMAT_VERSION}.{content_key}{suffix}"

        async def make(build: Build, path: Path) -> None:
            build.report(Progress(step="initramfs"))
            await asyncio.to_thread(_write, path, kernel, agent, extras)

        return await build_file(self._home, "initramfs", self._home.initramfs / name, make, on_progress)

    def prune(self, *, kernels: Collection[Path], agent: Path) -> None:
        """Remove all archives but those of ``kernels`` with ``agent``.

        If all archives have the same agent, it is assumed to be ``agent``, which saves hashing it. If they differ and
        the agent binary is missing, nothing is removed.
        """
        archives = list(self._home.initramfs.glob(f"*{_SUFFIX}"))
        needed = {_kernel_key(path) for path in kernels}
        agent_keys = {path.name.split("-")[1] for path in archives if path.name.count("-") == 2}
        if len(agent_keys) > 1:
            try:
                agent_keys = {self._agent_key(agent)}
            except InvalidArgument:
                return
        names = {f"{kernel_key}-{agent_key}-" for kernel_key in needed for agent_key in agent_keys}
        kept = {path for path in archives if path.name.startswith(tuple(names))}
        for path in set(self._home.initramfs.iterdir()) - kept - {record_path(path) for path in kept}:
            remove_file(path)

    def _agent_key(self, agent: Path) -> str:
        try:
            known_as = (agent, Stamp.of(agent))
        except OSError as error:
            raise _unreadable(agent, error) from error
        if known_as not in self._agents:
            self._agents[known_as] = hashlib.sha256(_read_agent(agent)).hexdigest()[:_KEY_DIGITS]
        return self._agents[known_as]


def _load_modules(kernel: Kernel, extras: Collection[str]) -> tuple[Module, ...]:
    names = [*kernel.modules, *(name for extra in sorted(extras) for name in kernel.extra_modules.get(extra, ()))]
    return modules.load_order(kernel.modules_dir, names) if kernel.modules_dir else ()


def _read_agent(agent: Path) -> bytes:
    try:
        return agent.read_bytes()
    except OSError as error:
        raise _unreadable(agent, error) from error


def _unreadable(agent: Path, error: OSError) -> InvalidArgument:
    return InvalidArgument(f"the guest agent {agent} cannot be read: {error.strerror}")


def _write(path: Path, kernel: Kernel, agent: Path, extras: Collection[str]) -> None:
    with path.open("xb") as file:
        file.writelines(cpio.archive(entries(_read_agent(agent), _load_modules(kernel, extras))))


def entries(init: bytes, loaded: Sequence[Module]) -> Iterator[cpio.Entry]:
    """Yield the archive's entries.

    The kernel opens ``/dev/console`` before the agent mounts ``/dev``.
    """
    for folder in ("dev", "newroot", "proc", "squib", "squib/modules", "sys"):
        yield cpio.directory(folder)
    yield cpio.character_device("dev/console", 5, 1)
    yield cpio.regular("init", init, executable=True)
    yield cpio.regular("squib/modules.list", "".join(f"{module.file_name}\n" for module in loaded).encode())
    for module in loaded:
        yield cpio.regular(f"squib/modules/{module.file_name}", module.data)


def _kernel_key(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:_KEY_DIGITS]


def _modules_key(loaded: Sequence[Module]) -> str:
    key = hashlib.sha256()
    for module in loaded:
        key.update(f"\n{module.file_name} {hashlib.sha256(module.data).hexdigest()}".encode())
    return key.hexdigest()[:_KEY_DIGITS]
