"""The errors of commands and of files in a guest."""

from __future__ import annotations

import errno
from typing import Protocol

from squib.errors.base import SquibError


class ExecError(SquibError):
    """A command in the guest could not run or has failed.

    Base of the errors below.
    """


class CommandNotFound(ExecError, FileNotFoundError):
    """The program does not exist in the guest."""

    code = "command_not_found"
    _errno = errno.ENOENT


class NotExecutable(ExecError, PermissionError):
    """The program exists in the guest but cannot be executed."""

    code = "not_executable"
    _errno = errno.EACCES


class ArgumentsTooLong(ExecError, OSError):
    """A command's arguments and environment exceed the guest kernel's limits.

    Linux allows 128 KiB for one string and, usually, 2 MiB for all of them.
    """

    code = "arguments_too_long"
    _errno = errno.E2BIG


class NoShell(ExecError, FileNotFoundError):
    """The image has no ``/bin/sh``."""

    code = "no_shell"
    _errno = errno.ENOENT


class BadWorkingDirectory(ExecError, FileNotFoundError):
    """The working directory does not exist in the guest."""

    code = "bad_cwd"
    _errno = errno.ENOENT


class NoSuchUser(ExecError, LookupError):
    """The image has no such user or group."""

    code = "no_such_user"


class NoSuchProcess(ExecError, ProcessLookupError):
    """No command in the guest has this process ID."""

    code = "no_such_process"
    _errno = errno.ESRCH


class StdinClosed(ExecError, BrokenPipeError):
    """The process has closed its standard input, or it never had one."""

    code = "stdin_closed"
    _errno = errno.EPIPE


class NoTerminal(ExecError, OSError):
    """The process has no terminal, so its size cannot be set."""

    code = "no_terminal"
    _errno = errno.ENOTTY


class CommandResult(Protocol):
    """The fields of the `squib.ExecResult` that an error has as ``result``."""

    @property
    def exit_code(self) -> int: ...
    @property
    def signal(self) -> int | None: ...
    @property
    def timed_out(self) -> bool: ...
    @property
    def duration_s(self) -> float: ...
    @property
    def stdout(self) -> str: ...
    @property
    def stderr(self) -> str: ...
    @property
    def output(self) -> str: ...


class CommandFailed(ExecError):
    """A command run with ``check=True`` ended with a status other than 0.

    ``result`` is its `ExecResult`.
    """

    code = "command_failed"
    result: CommandResult | None = None


class CommandTimeout(ExecError, TimeoutError):
    """A command run with ``check=True`` timed out.

    ``result`` is its `ExecResult`.
    """

    code = "command_timeout"
    _errno = errno.ETIMEDOUT
    result: CommandResult | None = None


class OutputTooLarge(ExecError):
    """A command with ``truncate="error"`` exceeded ``max_output`` bytes.

    The command was killed.
    """

    code = "output_too_large"


class FileError(SquibError, OSError):
    """A file operation in the guest, or a copy to or from it, has failed.

    Base of the errors below.
    """


class NoSuchFile(FileError, FileNotFoundError):
    """The path or one of its parent directories does not exist."""

    code = "no_such_file"
    _errno = errno.ENOENT


class FileExists(FileError, FileExistsError):
    """The path to create already exists."""

    code = "file_exists"
    _errno = errno.EEXIST


class NotAFile(FileError):
    """The path is not a regular file."""

    code = "not_a_file"
    _errno = errno.EINVAL


class IsADirectory(NotAFile, IsADirectoryError):
    """The path is a directory, and the operation needs a file."""

    code = "is_a_directory"
    older_code = NotAFile.code
    _errno = errno.EISDIR


class NotADirectory(FileError, NotADirectoryError):
    """The path is not a directory."""

    code = "not_a_directory"
    _errno = errno.ENOTDIR


class DirectoryNotEmpty(FileError):
    """The directory is not empty."""

    code = "directory_not_empty"
    _errno = errno.ENOTEMPTY


class PermissionDenied(FileError, PermissionError):
    """The operating system denies access to the path."""

    code = "permission_denied"
    _errno = errno.EACCES


class GuestDiskFull(FileError):
    """The guest's disk is full."""

    code = "guest_disk_full"
    _errno = errno.ENOSPC


class ArchiveRefused(FileError):
    """A guest sent an archive that is not safe to unpack on this host."""

    code = "archive_refused"


class TransferFailed(FileError):
    """A copy is incomplete: a file changed or could not be fully copied."""

    code = "transfer_failed"
    _errno = errno.EIO
