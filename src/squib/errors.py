"""Every error squib raises, as one tree.

Each class has its own ``code``. An engine sends the code, and its client raises the same class again
(`squib.protocol.errors`). A message says what failed, with the value. A hint says what to type next.
HTTP statuses are in `squib.api.errors`, exit statuses in `squib.cli.exit_codes`.

    SquibError
    ├── InvalidArgument             invalid_argument
    ├── NotFound                    not_found
    ├── Conflict                    conflict
    │   ├── NameTaken               name_taken
    │   └── WrongState              wrong_state
    │       └── Superseded          superseded
    ├── Unauthorized                unauthorized
    ├── HostNotAllowed              host_not_allowed
    ├── BodyTooLarge                body_too_large
    ├── EngineError
    │   ├── EngineUnavailable       engine_unavailable
    │   ├── EngineStartFailed       engine_start_failed
    │   ├── DatabaseFailed          database_failed
    │   └── InternalError           internal
    ├── HostError
    │   ├── DependencyMissing       dependency_missing
    │   ├── ToolFailed              tool_failed
    │   └── DiskFull                disk_full
    ├── Unsupported                 unsupported
    ├── ImageCorrupt                image_corrupt
    ├── RecordCorrupt               record_corrupt
    ├── BootError
    │   ├── BootFailed              boot_failed
    │   └── BootTimeout             boot_timeout
    ├── AgentError
    │   ├── AgentUnreachable        agent_unreachable
    │   │   ├── AgentLost           agent_lost
    │   │   ├── AgentTimeout        agent_timeout
    │   │   └── AgentProtocolError  agent_protocol_error
    │   ├── AgentVersionMismatch    agent_version_mismatch
    │   └── GuestFailed             guest_failed
    ├── ExecError
    │   ├── CommandNotFound         command_not_found
    │   ├── NotExecutable           not_executable
    │   ├── ArgumentsTooLong        arguments_too_long
    │   ├── NoShell                 no_shell
    │   ├── BadWorkingDirectory     bad_cwd
    │   ├── NoSuchUser              no_such_user
    │   ├── NoSuchProcess           no_such_process
    │   ├── StdinClosed             stdin_closed
    │   ├── NoTerminal              no_terminal
    │   ├── CommandFailed           command_failed
    │   └── CommandTimeout          command_timeout
    └── FileError
        ├── NoSuchFile              no_such_file
        ├── FileExists              file_exists
        ├── NotAFile                not_a_file
        ├── NotADirectory           not_a_directory
        ├── DirectoryNotEmpty       directory_not_empty
        ├── PermissionDenied        permission_denied
        ├── GuestDiskFull           guest_disk_full
        ├── ArchiveRefused          archive_refused
        └── TransferFailed          transfer_failed
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar


class SquibError(Exception):
    """Base of all errors.

    ``code`` is stable and meant for programs. ``message`` is one sentence with the value that failed. ``hint``
    says what to do next and may be empty. ``detail`` holds longer evidence, such as the last lines of a console.
    """

    code: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail

    def __str__(self) -> str:
        return "\n".join(part for part in (self.message, self.detail, self.hint) if part)

    def __reduce__(self) -> tuple[object, ...]:
        return (partial(type(self), hint=self.hint, detail=self.detail), (self.message,))


class InvalidArgument(SquibError):
    """An argument is not valid. Nothing was changed."""

    code = "invalid_argument"


class NotFound(SquibError):
    """No VM, image, kernel or API route has this name."""

    code = "not_found"


class Conflict(SquibError):
    """The request conflicts with the present state of things."""

    code = "conflict"


class NameTaken(Conflict):
    """Another VM already has this name or ID."""

    code = "name_taken"


class WrongState(Conflict):
    """The VM's state does not allow this operation."""

    code = "wrong_state"


class Superseded(WrongState):
    """A later call on the same VM, such as a delete, ended this operation."""

    code = "superseded"


class Unauthorized(SquibError):
    """The token is missing or wrong."""

    code = "unauthorized"


class HostNotAllowed(SquibError):
    """The Host header names a host that the engine does not serve. This check stops DNS rebinding."""

    code = "host_not_allowed"


class BodyTooLarge(SquibError):
    """The request body is larger than the engine allows."""

    code = "body_too_large"


class EngineError(SquibError):
    """The engine itself failed. Base of the errors below."""


class EngineUnavailable(EngineError):
    """No engine answers at this address."""

    code = "engine_unavailable"


class EngineStartFailed(EngineError):
    """The engine could not be started."""

    code = "engine_start_failed"


class DatabaseFailed(EngineError):
    """The engine's database cannot be read or written."""

    code = "database_failed"


class InternalError(EngineError):
    """A bug in squib. The engine's log has the traceback."""

    code = "internal"


class HostError(SquibError):
    """The host lacks something. Base of the errors below."""


class DependencyMissing(HostError):
    """A program or package that squib needs is not installed."""

    code = "dependency_missing"


class ToolFailed(HostError):
    """A host tool that squib ran has failed."""

    code = "tool_failed"


class DiskFull(HostError):
    """A disk of the host is full: the state directory's, or the destination of a copy."""

    code = "disk_full"


class Unsupported(SquibError):
    """The VM's driver or this host does not support the operation."""

    code = "unsupported"


class RecordCorrupt(SquibError):
    """The database record of a VM cannot be read. The VM can only be removed."""

    code = "record_corrupt"


class ImageCorrupt(SquibError):
    """A cached image or kernel differs from what was stored."""

    code = "image_corrupt"


class BootError(SquibError):
    """The VM did not boot. ``detail`` holds the last lines of its console."""


class BootFailed(BootError):
    """The VMM exited before the guest agent answered."""

    code = "boot_failed"


class BootTimeout(BootError):
    """The guest agent did not answer before the boot timeout."""

    code = "boot_timeout"


class AgentError(SquibError):
    """The guest agent failed. Base of the errors below."""


class AgentUnreachable(AgentError):
    """The agent did not complete a request. Its subclasses say why."""

    code = "agent_unreachable"


class AgentLost(AgentUnreachable):
    """The connection to the agent broke, or the VM ended."""

    code = "agent_lost"


class AgentTimeout(AgentUnreachable):
    """The agent did not answer in time."""

    code = "agent_timeout"


class AgentProtocolError(AgentUnreachable):
    """The guest sent data that the protocol does not allow."""

    code = "agent_protocol_error"


class AgentVersionMismatch(AgentError):
    """The agent speaks another version of the protocol."""

    code = "agent_version_mismatch"


class GuestFailed(AgentError):
    """The guest's operating system refused an operation, for a reason that has no class of its own."""

    code = "guest_failed"


class ExecError(SquibError):
    """A command in the guest could not run or has failed. Base of the errors below."""


class CommandNotFound(ExecError):
    """The program does not exist in the guest."""

    code = "command_not_found"


class NotExecutable(ExecError):
    """The program exists in the guest but cannot be executed."""

    code = "not_executable"


class ArgumentsTooLong(ExecError):
    """The arguments and the environment take more than the guest's kernel allows.

    Linux allows 128 KiB for one string and, usually, 2 MiB for all of them.
    """

    code = "arguments_too_long"


class NoShell(ExecError):
    """The image has no ``/bin/sh``."""

    code = "no_shell"


class BadWorkingDirectory(ExecError):
    """The working directory does not exist in the guest."""

    code = "bad_cwd"


class NoSuchUser(ExecError):
    """The image has no such user or group."""

    code = "no_such_user"


class NoSuchProcess(ExecError):
    """No command in the guest has this process ID."""

    code = "no_such_process"


class StdinClosed(ExecError):
    """The process has closed its standard input, or it never had one."""

    code = "stdin_closed"


class NoTerminal(ExecError):
    """The process has no terminal, so its size cannot be set."""

    code = "no_terminal"


class CommandFailed(ExecError):
    """A command run with ``check=True`` ended with a status other than 0."""

    code = "command_failed"


class CommandTimeout(ExecError):
    """A command run with ``check=True`` timed out."""

    code = "command_timeout"


class FileError(SquibError):
    """A file operation in the guest, or a copy to or from it, has failed. Base of the errors below."""


class NoSuchFile(FileError):
    """The path or one of its parent directories does not exist."""

    code = "no_such_file"


class FileExists(FileError):
    """The path to create already exists."""

    code = "file_exists"


class NotAFile(FileError):
    """The path is not a regular file."""

    code = "not_a_file"


class NotADirectory(FileError):
    """The path is not a directory."""

    code = "not_a_directory"


class DirectoryNotEmpty(FileError):
    """The directory is not empty."""

    code = "directory_not_empty"


class PermissionDenied(FileError):
    """The operating system denies access to the path."""

    code = "permission_denied"


class GuestDiskFull(FileError):
    """The guest's disk is full."""

    code = "guest_disk_full"


class ArchiveRefused(FileError):
    """A guest sent an archive that is not safe to unpack on this host."""

    code = "archive_refused"


class TransferFailed(FileError):
    """A copy is incomplete: a file could not be read or written to its end, or it changed meanwhile."""

    code = "transfer_failed"
