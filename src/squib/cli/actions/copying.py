"""Copying to, from and between VMs: what ``upload``, ``download`` and ``cp`` have in common."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from squib.cli.args import options
from squib.cli.args.units import show_bytes
from squib.cli.progress import calm, steps
from squib.cli.render import Output
from squib.cli.terminal.streams import ended_by_broken_pipe, read_chunks, write_all
from squib.errors import InvalidArgument, NotAFile
from squib.models import FileType, OnProgress, Progress
from squib.sdk.client import EngineClient
from squib.sdk.config import check_ref
from squib.sdk.fileclient import FileClient
from squib.sdk.files import AsyncFiles
from squib.sdk.result import Copied
from squib.sdk.transfer import copying

_STREAM = "-"
_HINT = "the last path is where to copy to: SRC... DST"


@dataclass(frozen=True)
class _Place:
    """A path, and the VM that it is in, if in one."""

    vm: str | None
    path: str

    @classmethod
    def of(cls, text: str) -> _Place:
        """``VM:PATH``; as for scp, a colon after a slash is part of a local name."""
        vm, colon, path = text.partition(":")
        if not colon or not vm or "/" in vm:
            return cls(None, text)
        return cls(check_ref(vm), path)


class Copy:
    """One copy, as its flags say. Raises `InvalidArgument` for flags that make no sense."""

    def __init__(
        self,
        output: Output,
        *,
        owner: str | None = None,
        mode: str | None = None,
        keep_owner: bool = False,
        unsafe_links: bool = False,
    ) -> None:
        if owner is not None and keep_owner:
            raise InvalidArgument("--owner and --keep-owner exclude each other", hint="give one of them")
        self._output = output
        self._owner = owner
        self._mode = options.parse_mode(mode)
        self._keep_owner = keep_owner
        self._unsafe_links = unsafe_links

    async def upload(self, engine: EngineClient, sources: Sequence[str], vm: str, target: str) -> None:
        """From this machine into a VM."""
        _check(sources)
        files = AsyncFiles(engine, vm)
        with _reporting(self._output, f"uploading to {vm}", sources, target) as report:
            if _STREAM in sources:
                _check_stream(sources)
                chunks = _counted(read_chunks(sys.stdin.fileno()), report.on_progress)
                info = await files.write(target, chunks, mode=self._mode, owner=self._owner)
                report.done(Copied(1, info.size))
                return
            report.done(
                await files.upload(
                    sources,
                    target,
                    owner=self._owner,
                    mode=self._mode,
                    keep_owner=self._keep_owner,
                    on_progress=report.on_progress,
                )
            )

    async def download(self, engine: EngineClient, vm: str, sources: Sequence[str], target: str) -> None:
        """From a VM to this machine."""
        _check(sources)
        files = AsyncFiles(engine, vm)
        if target == _STREAM:
            if self._output.json:
                raise InvalidArgument("--json and '-' exclude each other: both are standard output")
            await _to_stdout(files, vm, sources)
            return
        with _reporting(self._output, f"downloading from {vm}", sources, target) as report:
            report.done(
                await files.download(
                    sources,
                    target,
                    keep_owner=self._keep_owner,
                    unsafe_links=self._unsafe_links,
                    on_progress=report.on_progress,
                )
            )

    async def between(self, paths: Sequence[str]) -> None:
        """From here to a VM, or from a VM to here, or from a VM to another one, as the paths say."""
        *sources, target = (_Place.of(path) for path in paths)
        _check(sources)
        givers = {source.vm for source in sources}
        if len(givers) > 1:
            raise InvalidArgument("the sources are not all in the same place", hint="copy from one after the other")
        giver, taker = givers.pop(), target.vm
        if giver is None and taker is None:
            raise InvalidArgument("neither side is in a VM", hint="write VM:PATH for a path in a VM; or use cp")
        self._check_flags(giver, taker)
        names = [source.path for source in sources]
        async with options.connect() as engine:
            if giver is None and taker is not None:
                await self.upload(engine, names, taker, target.path)
            elif giver is not None and taker is None:
                await self.download(engine, giver, names, target.path)
            elif giver is not None and taker is not None:
                await self._relay(engine, giver, names, taker, target.path)

    def _check_flags(self, giver: str | None, taker: str | None) -> None:
        if taker is None and (self._owner is not None or self._mode is not None):
            raise InvalidArgument("--owner and --mode are for copies into a VM", hint="what is copied here is yours")
        if (giver is None or taker is not None) and self._unsafe_links:
            raise InvalidArgument("--unsafe-links is for copies from a VM to this machine", hint="leave it out")

    async def _relay(self, engine: EngineClient, giver: str, sources: Sequence[str], taker: str, target: str) -> None:
        if (await engine.vm(giver)).vm_id == (await engine.vm(taker)).vm_id:
            raise InvalidArgument(f"both sides are in VM {giver}", hint=f"squib exec {giver} cp -a SRC... DST")
        with _reporting(self._output, f"copying from {giver} to {taker}", sources, target) as report:
            report.done(
                await copying.relay(
                    FileClient(engine, giver),
                    sources,
                    FileClient(engine, taker),
                    target,
                    owner=self._owner,
                    mode=self._mode,
                    keep_owner=self._keep_owner,
                    on_progress=report.on_progress,
                )
            )


def _check(sources: Sequence[object]) -> None:
    if not sources:
        raise InvalidArgument("there is nothing to copy: only one path was given", hint=_HINT)


def _check_stream(sources: Sequence[str]) -> None:
    if len(sources) > 1:
        raise InvalidArgument("'-' is copied alone, to the path of a file", hint="copy the others by another command")


async def _counted(chunks: AsyncIterator[bytes], on_progress: OnProgress) -> AsyncIterator[bytes]:
    done = 0
    async for chunk in chunks:
        yield chunk
        done += len(chunk)
        on_progress(Progress(step="standard input", done=done, unit="bytes"))


async def _to_stdout(files: AsyncFiles, vm: str, sources: Sequence[str]) -> None:
    """One file as it is. Raises `BrokenPipeError` as soon as nobody reads any more."""
    if len(sources) > 1:
        raise InvalidArgument("only one file can go to standard output", hint="download them one after the other")
    (source,) = sources
    info = await files.stat(source)
    if info.type is not FileType.FILE:
        raise NotAFile(
            f"{source} is a {info.type}; only a file can go to standard output",
            hint=f"squib exec {vm} tar c -C {source} .",
        )
    fd = sys.stdout.fileno()
    with ended_by_broken_pipe(fd):
        async with aclosing(files.stream(source)) as chunks:
            async for chunk in chunks:
                await write_all(fd, chunk)


class _Report:
    """Tells what is copied while it is, and what was in the end."""

    def __init__(self, output: Output, on_progress: OnProgress, sources: Sequence[str], target: str) -> None:
        self.on_progress = on_progress
        self._output = output
        self._sources = sources
        self._target = target
        self._began = time.monotonic()

    def done(self, copied: Copied) -> None:
        duration_s = time.monotonic() - self._began
        for left_out in copied.left_out:
            self._output.note(f"left out: {left_out}")
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
        self._output.detail(f"entries: {copied.entries}, {show_bytes(copied.bytes)} in {duration_s:.2f} s")


@contextmanager
def _reporting(output: Output, title: str, sources: Sequence[str], target: str) -> Iterator[_Report]:
    with steps(output, title) as show:
        yield _Report(output, calm(show), sources, target)
