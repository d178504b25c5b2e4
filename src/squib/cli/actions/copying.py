"""Copy files to, from and between VMs: ``upload``, ``download`` and ``cp``."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from squib.cli.args import options
from squib.cli.args.units import show_bytes
from squib.cli.progress import steps, throttled
from squib.cli.render import Output
from squib.cli.terminal.streams import ended_by_broken_pipe, read_chunks, write_all
from squib.errors import InvalidArgument, IsADirectory, NotAFile
from squib.models import FileType, OnProgress, Progress
from squib.sdk.client import EngineClient
from squib.sdk.config import check_ref
from squib.sdk.fileclient import FileClient
from squib.sdk.files import AsyncFiles
from squib.sdk.result import CopyResult
from squib.sdk.transfer.relay import relay

_STREAM = "-"
_HINT = "give sources and a destination: SRC... DST"


@dataclass(frozen=True)
class _Place:
    """A path in a VM, or on this machine if ``vm`` is None."""

    vm: str | None
    path: str

    @classmethod
    def of(cls, text: str) -> _Place:
        """Parse ``VM:PATH`` or a local path.

        As for scp, a colon after a slash is part of a local path.
        """
        vm, colon, path = text.partition(":")
        if not colon or not vm or "/" in vm:
            return cls(None, text)
        return cls(check_ref(vm), path or ".")


class Copy:
    """A copy with the flags of a command line.

    Raises `InvalidArgument` for flags that contradict each other.
    """

    def __init__(
        self,
        output: Output,
        *,
        owner: str | None = None,
        mode: str | None = None,
        keep_owner: bool = False,
        unsafe_links: bool = False,
        parents: bool = True,
        user: str | None = None,
    ) -> None:
        if owner is not None and keep_owner:
            raise InvalidArgument("--owner and --keep-owner cannot be used together", hint="use one of them")
        self._output = output
        self._owner = owner
        self._mode = options.parse_mode(mode)
        self._keep_owner = keep_owner
        self._unsafe_links = unsafe_links
        self._parents = parents
        self._user = user

    async def upload(self, engine: EngineClient, sources: Sequence[str], vm: str, target: str) -> None:
        """Copy from this machine into a VM."""
        _check(sources)
        files = AsyncFiles(engine, vm)
        with _reporting(self._output, f"uploading to {vm}", sources, target) as report:
            if _STREAM in sources:
                _check_stream(sources)
                chunks = _counted(read_chunks(sys.stdin.fileno()), report.on_progress)
                info = await files.write(
                    target, chunks, mode=self._mode, owner=self._owner, parents=self._parents, user=self._user
                )
                report.done(CopyResult(1, info.size))
                return
            report.done(
                await files.upload(
                    sources,
                    target,
                    owner=self._owner,
                    mode=self._mode,
                    keep_owner=self._keep_owner,
                    on_progress=report.on_progress,
                    parents=self._parents,
                    user=self._user,
                )
            )

    async def download(self, engine: EngineClient, vm: str, sources: Sequence[str], target: str) -> None:
        """Copy from a VM to this machine."""
        _check(sources)
        files = AsyncFiles(engine, vm)
        if target == _STREAM:
            if self._output.json:
                raise InvalidArgument("--json and '-' cannot be used together: both write to standard output")
            await _to_stdout(files, vm, sources, self._user)
            return
        with _reporting(self._output, f"downloading from {vm}", sources, target) as report:
            report.done(
                await files.download(
                    sources,
                    target,
                    keep_owner=self._keep_owner,
                    unsafe_links=self._unsafe_links,
                    on_progress=report.on_progress,
                    user=self._user,
                )
            )

    async def between(self, paths: Sequence[str]) -> None:
        """Copy from a VM, to a VM, or between two VMs, depending on ``paths``.

        The last path is the target. A path in a VM is written ``VM:PATH``.

        Raises `InvalidArgument` if the sources are in different places, or if no path is in a VM.
        """
        *sources, target = (_Place.of(path) for path in paths)
        _check(sources)
        source_vms = {source.vm for source in sources}
        if len(source_vms) > 1:
            raise InvalidArgument("the sources are in different places", hint="use one command for each")
        source_vm, destination_vm = source_vms.pop(), target.vm
        if source_vm is None and destination_vm is None:
            raise InvalidArgument("neither side is in a VM", hint="write VM:PATH for a path in a VM, or use cp")
        self._check_flags(source_vm, destination_vm)
        names = [source.path for source in sources]
        async with options.connect() as engine:
            if source_vm is None and destination_vm is not None:
                await self.upload(engine, names, destination_vm, target.path)
            elif source_vm is not None and destination_vm is None:
                await self.download(engine, source_vm, names, target.path)
            elif source_vm is not None and destination_vm is not None:
                await self._relay(engine, source_vm, names, destination_vm, target.path)

    def _check_flags(self, source_vm: str | None, destination_vm: str | None) -> None:
        if destination_vm is None and (self._owner is not None or self._mode is not None):
            raise InvalidArgument("--owner and --mode only apply to copies into a VM", hint="omit them")
        if (source_vm is None or destination_vm is not None) and self._unsafe_links:
            raise InvalidArgument("--unsafe-links only applies to copies from a VM to this machine", hint="omit it")

    async def _relay(
        self, engine: EngineClient, source_vm: str, sources: Sequence[str], destination_vm: str, target: str
    ) -> None:
        if (await engine.vm(source_vm)).vm_id == (await engine.vm(destination_vm)).vm_id:
            raise InvalidArgument(f"both paths are in VM {source_vm}", hint=f"squib exec {source_vm} cp -a SRC... DST")
        with _reporting(self._output, f"copying from {source_vm} to {destination_vm}", sources, target) as report:
            report.done(
                await relay(
                    FileClient(engine, source_vm, self._user),
                    sources,
                    FileClient(engine, destination_vm, self._user),
                    target,
                    owner=self._owner,
                    mode=self._mode,
                    keep_owner=self._keep_owner,
                    parents=self._parents,
                    on_progress=report.on_progress,
                )
            )


def _check(sources: Sequence[object]) -> None:
    if not sources:
        raise InvalidArgument("nothing to copy: only one path given", hint=_HINT)


def _check_stream(sources: Sequence[str]) -> None:
    if len(sources) > 1:
        raise InvalidArgument("'-' cannot be combined with other sources", hint="use another command for them")


async def _counted(chunks: AsyncIterator[bytes], on_progress: OnProgress) -> AsyncIterator[bytes]:
    done = 0
    async for chunk in chunks:
        yield chunk
        done += len(chunk)
        on_progress(Progress(step="standard input", done=done, unit="bytes"))


async def _to_stdout(files: AsyncFiles, vm: str, sources: Sequence[str], user: str | None) -> None:
    """Write one file to standard output.

    Raises `BrokenPipeError` as soon as the reader is gone.
    """
    if len(sources) > 1:
        raise InvalidArgument("only one file can be written to standard output", hint="use one command for each")
    (source,) = sources
    info = await files.stat(source, user=user)
    if info.type is not FileType.FILE:
        kind = IsADirectory if info.type is FileType.DIRECTORY else NotAFile
        raise kind(
            f"{source} is a {info.type}; only a file can be written to standard output",
            hint=f"squib exec {vm} tar c -C {source} .",
        )
    fd = sys.stdout.fileno()
    with ended_by_broken_pipe(fd):
        async with aclosing(files.stream(source, user=user)) as chunks:
            async for chunk in chunks:
                await write_all(fd, chunk)


class _Report:
    """Shows the progress of a copy, and its result."""

    def __init__(self, output: Output, on_progress: OnProgress, sources: Sequence[str], target: str) -> None:
        self.on_progress = on_progress
        self._output = output
        self._sources = sources
        self._target = target
        self._began = time.monotonic()

    def done(self, copied: CopyResult) -> None:
        duration_s = time.monotonic() - self._began
        for left_out in copied.left_out:
            self._output.note(f"skipped: {left_out}")
        if self._output.json:
            self._output.data(
                {
                    "sources": self._sources,
                    "target": self._target,
                    "entries": copied.entries,
                    "bytes": copied.bytes,
                    "duration_s": round(duration_s, 3),
                    "left_out": copied.left_out,
                }
            )
        self._output.detail(f"copied {copied.entries} entries, {show_bytes(copied.bytes)} in {duration_s:.2f} s")


@contextmanager
def _reporting(output: Output, title: str, sources: Sequence[str], target: str) -> Iterator[_Report]:
    with steps(output, title) as show:
        yield _Report(output, throttled(show), sources, target)
