"""Start processes; no other module does.

`run` starts tools that end by themselves; `spawn` starts processes that outlive the engine. Both can pass a locked file
to the process. The lock is held until that process, and every child that inherited the file, has ended. It therefore
shows whether a process still runs, and which one (`squib.host.processes`). A recorded pid does not show that: by now
another process may have it.
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
from squib.host.processes import Process, describe_exit

PACKAGE_OF = {
    "debugfs": "e2fsprogs",
    "lz4": "lz4",
    "mkfs.ext4": "e2fsprogs",
    "mksquashfs": "squashfs-tools",
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
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
    """Find a program on the PATH or in the system's directories.

    Raises `DependencyMissing`.
    """
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
    pass_fds: Sequence[int] = (),
    ends_with_caller: bool = False,
    extra_env: Mapping[str, str] | None = None,
    on_stderr_line: Callable[[str], None] | None = None,
) -> Completed:
    """Run a tool until it exits and return its output.

    ``stdin`` is its input: bytes or a file descriptor. If ``stdout`` is given, the output goes to that descriptor and
    is not returned. The tool inherits ``lock`` and ``pass_fds``. ``on_stderr_line`` gets each line of standard error
    as it arrives, without its newline. On cancellation or after ``timeout_s`` the tool's process group is killed and
    reaped. With ``ends_with_caller``, the kernel kills the tool, but not what it started, when the calling thread ends,
    as when this process is killed.

    Raises `DependencyMissing`, and `ToolFailed` with the end of standard error if the exit status is not 0.
    """
    program = find_tool(os.fspath(argv[0]))
    prefix = (find_tool("setpriv"), "--pdeathsig", "KILL") if ends_with_caller else ()
    start = asyncio.create_subprocess_exec(
        *prefix,
        program,
        *(os.fspath(argument) for argument in argv[1:]),
        stdin=subprocess.PIPE if isinstance(stdin, bytes) else subprocess.DEVNULL if stdin is None else stdin,
        stdout=subprocess.PIPE if stdout is None else stdout,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=_tool_environment() | dict(extra_env or {}),
        pass_fds=(*pass_fds, *((lock.fileno(),) if lock else ())),
        start_new_session=True,
    )
    # A separate, shielded task: if this were cancelled while asyncio starts the tool, asyncio would kill the tool but
    # not the processes that the tool has already started.
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
        raise ToolFailed(f"{program.name} did not exit within {timeout_s:g} s") from None
    finally:
        if not finished:
            await asyncio.shield(_kill_group(starting))
    if process.returncode:
        raise _failure(program, process.returncode, err)
    return Completed(out or b"", err)


async def _kill_group(starting: asyncio.Task[asyncio.subprocess.Process]) -> None:
    """Kill and reap the tool and its process group, once it has started.

    The tool may have ended already while processes that it started still run.
    """
    process = await starting
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def pipe_through(argv: Sequence[str], data: bytes) -> bytes:
    """Run a filter on ``data`` and return its output.

    Blocks, so use it only for filters that take milliseconds.

    Raises `DependencyMissing`, `ToolFailed`.
    """
    program = find_tool(argv[0])
    done = subprocess.run([program, *argv[1:]], input=data, capture_output=True, env=_tool_environment(), check=False)
    if done.returncode != 0:
        raise _failure(program, done.returncode, done.stderr)
    return done.stdout


def _failure(program: Path, status: int, stderr: bytes) -> ToolFailed:
    tail = stderr[-_STDERR_TAIL_BYTES:].decode(errors="replace").strip()
    return ToolFailed(f"{program.name} {describe_exit(status)}", detail=tail)


async def _read_lines(stream: asyncio.StreamReader, on_line: Callable[[str], None]) -> bytes:
    """Return all bytes of ``stream``; pass each line to ``on_line``.

    Lines have no newline.
    """
    received = bytearray()
    reported_bytes = 0
    while chunk := await stream.read(1 << 16):
        received += chunk
        while (end := received.find(b"\n", reported_bytes)) >= 0:
            on_line(received[reported_bytes:end].decode(errors="replace"))
            reported_bytes = end + 1
    if reported_bytes < len(received):
        on_line(received[reported_bytes:].decode(errors="replace"))
    return bytes(received)


def _tool_environment() -> dict[str, str]:
    env = {name: os.environ[name] for name in _PASSED_ENVIRONMENT if name in os.environ}
    return env | {"PATH": f"{env.get('PATH', '')}:{_SYSTEM_PATH}".lstrip(":"), "LC_ALL": "C.UTF-8"}


def spawn(
    argv: Sequence[str],
    *,
    lock: FileLock,
    pass_fds: Sequence[int] = (),
    log_path: Path,
    stdout_path: Path | None = None,
) -> Process:
    """Start a process that outlives the engine, in a new session.

    It inherits only ``lock``, which the caller holds, and ``pass_fds``. Its output goes to ``log_path``, a file or a
    named pipe; standard output to ``stdout_path`` instead, if it is given. Writing to a pipe never blocks the process
    and needs no reader: output that does not fit is lost. The environment contains only PATH. The process leaves no
    core dump.

    Raises `DependencyMissing`, `HostError`.
    """
    program = find_tool(argv[0])
    with contextlib.ExitStack() as opened:

        def output(path: Path) -> int:
            # The process has a pipe open for reading too, so writes do not fail while no engine reads it.
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
            opened.callback(os.close, fd)
            return fd

        log_fd = output(log_path)
        stdout_fd = output(stdout_path) if stdout_path else log_fd
        try:
            with _no_core_dump():
                child = subprocess.Popen(
                    [program, *argv[1:]],
                    stdin=subprocess.DEVNULL,
                    stdout=stdout_fd,
                    stderr=log_fd,
                    cwd="/",
                    env={"PATH": _SYSTEM_PATH},
                    pass_fds=(lock.fileno(), *pass_fds),
                    start_new_session=True,
                    umask=0o077,
                )
        except OSError as error:
            raise HostError(f"{program} cannot be started: {error.strerror}") from error
    child.returncode = 0  # `Process` waits for the child; this silences Popen's ResourceWarning
    return Process(child.pid, os.pidfd_open(child.pid))


@contextlib.contextmanager
def _no_core_dump() -> Iterator[None]:
    """Set a core size limit of 0 for processes started in the block.

    prlimit(2) on the child is no alternative: once the child runs as another user, that needs CAP_SYS_RESOURCE, which a
    container may lack.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def spawn_daemon(argv: Sequence[str], *, log_path: Path, pass_fds: Sequence[int] = ()) -> int:
    """Start one of squib's own programs in a new session; return its pid.

    The program (the engine) inherits this process's environment. Nothing here waits for it: after this process ends,
    init reaps it.
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
    child.returncode = 0  # this process never waits for it; this silences Popen's ResourceWarning
    return child.pid


def call(argv: Sequence[str]) -> int:
    """Run a command on this terminal and return its exit status.

    `squib doctor --fix` uses this. The output goes to standard error, because squib's standard output is for results.
    """
    return subprocess.call(argv, stdout=2)
