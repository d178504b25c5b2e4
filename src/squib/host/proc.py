"""The one place that starts processes.

Two kinds: `run` is for tools that end, `spawn` for processes that outlive the engine. Either way the process inherits
a locked file, and holds that lock for as long as it, or a child that it passed the descriptor to, exists. So the lock
shows whether something still runs, and which process it is (`squib.host.processes`). A recorded pid does not: another
process may have it by now.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from squib.errors import DependencyMissing, HostError, ToolFailed
from squib.host.locks import FileLock
from squib.host.processes import Process

PACKAGE_OF = {
    "debugfs": "e2fsprogs",
    "lz4": "lz4",
    "mkfs.ext4": "e2fsprogs",
    "mksquashfs": "squashfs-tools",
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "qemu-system-x86_64": "qemu-system-x86",
    "sqfstar": "squashfs-tools",
    "unshare": "util-linux",
    "zstd": "zstd",
}
"""The Debian package of each program that squib may start."""

_PASSED_ENVIRONMENT = (
    "APT_CONFIG", "HOME", "LANG", "LC_ALL", "PATH", "SSL_CERT_DIR", "SSL_CERT_FILE", "TMPDIR", "USER",
    "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_STDERR_TAIL_BYTES = 4096


@dataclass(frozen=True)
class Completed:
    """A tool that ended with status 0."""

    stdout: bytes
    stderr: bytes


def find_tool(name: str) -> Path:
    """The program ``name`` on the PATH or in the system's directories. Raises `DependencyMissing`."""
    for folder in f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}".split(":"):
        candidate = Path(folder or ".") / name
        if folder and os.access(candidate, os.X_OK) and candidate.is_file():
            return candidate
    package = PACKAGE_OF.get(name, name)
    raise DependencyMissing(
        f"{name} is not installed", hint=f"squib doctor --fix   (or: apt-get install --no-install-recommends {package})"
    )


async def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    stdin: bytes | int | None = None,
    stdout: int | None = None,
    cwd: Path | None = None,
    timeout_s: float | None = None,
    lock: FileLock | None = None,
    extra_env: Mapping[str, str] | None = None,
    on_stderr_line: Callable[[str], None] | None = None,
) -> Completed:
    """Run a tool to its end and return what it printed.

    ``stdin`` is its input, as bytes or as a descriptor; ``stdout`` a descriptor that takes its output instead.
    ``lock`` is held by the tool too. ``on_stderr_line`` gets each line of its standard error as it comes. When this
    task is cancelled or ``timeout_s`` passes, the tool's process group is killed and reaped. Raises
    `DependencyMissing`; `ToolFailed` with the end of its standard error for any status but 0.
    """
    program = find_tool(os.fspath(argv[0]))
    start = asyncio.create_subprocess_exec(
        program,
        *(os.fspath(argument) for argument in argv[1:]),
        stdin=subprocess.PIPE if isinstance(stdin, bytes) else subprocess.DEVNULL if stdin is None else stdin,
        stdout=subprocess.PIPE if stdout is None else stdout,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=_tool_environment() | dict(extra_env or {}),
        pass_fds=(lock.fileno(),) if lock else (),
        start_new_session=True,
    )
    # A task of its own: cancelled half-way, asyncio would kill the tool but not what it has started by then.
    starting = asyncio.create_task(start)
    finished = False
    try:
        async with asyncio.timeout(timeout_s):
            process = await asyncio.shield(starting)
            data = stdin if isinstance(stdin, bytes) else None
            if on_stderr_line is None:
                out, err = await process.communicate(data)
            else:
                err_reader, process.stderr = process.stderr, None  # read here, not by communicate()
                assert err_reader is not None
                (out, _), err = await asyncio.gather(process.communicate(data), _read_lines(err_reader, on_stderr_line))
        finished = True
    except TimeoutError:
        raise ToolFailed(f"{program.name} did not end within {timeout_s:g} s") from None
    finally:
        if not finished:
            await asyncio.shield(_kill_group(starting))
    if process.returncode:
        raise _failure(program, process.returncode, err)
    return Completed(out or b"", err)


async def _kill_group(starting: asyncio.Task[asyncio.subprocess.Process]) -> None:
    """Kill a tool and what it started, as soon as it is there; it may itself have ended before the others."""
    process = await starting
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def pipe_through(argv: Sequence[str], data: bytes) -> bytes:
    """What a tool that reads its standard input makes of ``data``. For filters that take milliseconds: it blocks.

    Raises `DependencyMissing`, `ToolFailed`.
    """
    program = find_tool(argv[0])
    done = subprocess.run([program, *argv[1:]], input=data, capture_output=True, env=_tool_environment(), check=False)
    if done.returncode != 0:
        raise _failure(program, done.returncode, done.stderr)
    return done.stdout


def _failure(program: Path, status: int, stderr: bytes) -> ToolFailed:
    tail = stderr[-_STDERR_TAIL_BYTES:].decode(errors="replace").strip()
    return ToolFailed(f"{program.name} ended with status {status}", detail=tail)


async def _read_lines(stream: asyncio.StreamReader, on_line: Callable[[str], None]) -> bytes:
    """All that comes from ``stream``, passed on line by line (without the line's end)."""
    seen = bytearray()
    reported = 0
    while chunk := await stream.read(1 << 16):
        seen += chunk
        while (end := seen.find(b"\n", reported)) >= 0:
            on_line(seen[reported:end].decode(errors="replace"))
            reported = end + 1
    if reported < len(seen):
        on_line(seen[reported:].decode(errors="replace"))
    return bytes(seen)


def _tool_environment() -> dict[str, str]:
    env = {name: os.environ[name] for name in _PASSED_ENVIRONMENT if name in os.environ}
    return env | {"PATH": f"{env.get('PATH', '')}:{_SYSTEM_PATH}".lstrip(":"), "LC_ALL": "C.UTF-8"}


def spawn(
    argv: Sequence[str],
    *,
    lock: FileLock,
    pass_fds: Sequence[int] = (),
    log_path: Path,
) -> Process:
    """Start a process in a session of its own that outlives the engine.

    It inherits ``lock`` (which the caller holds) and ``pass_fds`` and nothing else; its output goes to ``log_path``,
    a file or a named pipe; its environment is empty but for PATH; it leaves no core dump. The process never waits for
    a reader of the pipe, and needs none: what does not fit in is lost. Raises `DependencyMissing`.
    """
    program = find_tool(argv[0])
    # Open for reading too, the process keeps the pipe alive while no engine runs.
    log_fd = os.open(log_path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        with _no_core_dump():
            child = subprocess.Popen(
                [program, *argv[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                cwd="/",
                env={"PATH": _SYSTEM_PATH},
                pass_fds=(lock.fileno(), *pass_fds),
                start_new_session=True,
                umask=0o077,
            )
    except OSError as error:
        raise HostError(f"{program} could not be started: {error.strerror}") from error
    finally:
        os.close(log_fd)
    child.returncode = 0  # `Process` waits for it: silences Popen's ResourceWarning
    return Process(child.pid, os.pidfd_open(child.pid))


@contextlib.contextmanager
def _no_core_dump() -> Iterator[None]:
    """What is started in this block inherits a core size limit of 0.

    Not prlimit(2) on the child: once that is another user, it takes CAP_SYS_RESOURCE, which a container may lack.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def spawn_daemon(argv: Sequence[str], *, log_path: Path, pass_fds: Sequence[int] = ()) -> int:
    """Start a program of squib's own (the engine) detached from this terminal, with this environment; return its pid.

    It is not waited for: whoever adopts orphans reaps it.
    """
    log_fd = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            cwd="/",
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )
    finally:
        os.close(log_fd)
    child.returncode = 0  # its end is nobody's business here: silences Popen's ResourceWarning
    return child.pid


def call(argv: Sequence[str]) -> int:
    """Run a command at this terminal and return its exit status (`squib doctor --fix`). All it prints goes to standard
    error: our own standard output is for results.
    """
    return subprocess.call(argv, stdout=2)
