"""Every error squib raises, as one tree.

Each class is one ``code``. The code decides the HTTP status and the exit code of the command line, and
the client of a remote engine raises the same class again from it (`from_wire`). A message says what
failed, with the value; a hint says what to type next.

    SquibError
    ├── InvalidArgument             invalid_argument
    ├── NotFound                    not_found
    ├── Conflict                    conflict
    │   ├── NameTaken               name_taken
    │   ├── WrongState              wrong_state
    │   └── Superseded              superseded
    ├── Unauthorized                unauthorized
    ├── HostNotAllowed              host_not_allowed
    ├── BodyTooLarge                body_too_large
    ├── EngineError
    │   ├── EngineUnavailable       engine_unavailable
    │   ├── EngineStartFailed       engine_start_failed
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
    │   └── AgentVersionMismatch    agent_version_mismatch
    ├── ExecError
    │   ├── CommandNotFound         command_not_found
    │   ├── NotExecutable           not_executable
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

from typing import ClassVar


class SquibError(Exception):
    """Base of all errors.

    ``code`` is stable and machine-readable; ``message`` is one sentence with the value that failed; ``hint``
    says what to do next and may be empty. ``detail`` holds longer evidence, such as the last lines of a console.
    """

    code: ClassVar[str] = ""
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail

    def __str__(self) -> str:
        return "\n".join(part for part in (self.message, self.detail, self.hint) if part)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self)._rebuild, (self.message, self.hint, self.detail))

    @classmethod
    def _rebuild(cls, message: str, hint: str, detail: str) -> SquibError:
        return cls(message, hint=hint, detail=detail)


class InvalidArgument(SquibError):
    """A value that squib refuses. Nothing was changed."""

    code = "invalid_argument"
    http_status = 400
    exit_code = 2


class NotFound(SquibError):
    """No VM, image, kernel or route has this name."""

    code = "not_found"
    http_status = 404


class Conflict(SquibError):
    """The request cannot be carried out as things are now."""

    code = "conflict"
    http_status = 409


class NameTaken(Conflict):
    """Another VM has this name or ID."""

    code = "name_taken"


class WrongState(Conflict):
    """The VM is in a state in which this operation is not possible."""

    code = "wrong_state"


class Superseded(Conflict):
    """A later call on the same VM, such as a delete, ended this operation."""

    code = "superseded"


class Unauthorized(SquibError):
    """The token is missing or wrong."""

    code = "unauthorized"
    http_status = 401


class HostNotAllowed(SquibError):
    """The Host header names a host that the engine does not serve (DNS rebinding)."""

    code = "host_not_allowed"
    http_status = 403


class BodyTooLarge(SquibError):
    """The request's body is over the engine's limit."""

    code = "body_too_large"
    http_status = 413


class EngineError(SquibError):
    """Something about the engine itself."""


class EngineUnavailable(EngineError):
    """No engine answers at this address."""

    code = "engine_unavailable"
    http_status = 503


class EngineStartFailed(EngineError):
    """The engine could not be started."""

    code = "engine_start_failed"
    http_status = 503


class InternalError(EngineError):
    """A fault in squib. The engine's log has the traceback."""

    code = "internal"


class HostError(SquibError):
    """The host lacks something."""


class DependencyMissing(HostError):
    """A program or package that squib needs is not installed."""

    code = "dependency_missing"
    http_status = 503


class ToolFailed(HostError):
    """A host tool that squib started ended with an error."""

    code = "tool_failed"


class DiskFull(HostError):
    """A disk of the host is full: that of the state directory, or of files that are copied there."""

    code = "disk_full"
    http_status = 507


class Unsupported(SquibError):
    """The VM's driver, or this host, cannot do this."""

    code = "unsupported"
    http_status = 422
    exit_code = 2


class RecordCorrupt(SquibError):
    """The database's record of a VM cannot be read. The VM can only be removed."""

    code = "record_corrupt"


class ImageCorrupt(SquibError):
    """A cached image or kernel is not what was stored."""

    code = "image_corrupt"


class BootError(SquibError):
    """The VM did not come up. ``detail`` holds the last lines of its console."""


class BootFailed(BootError):
    """The VMM ended before the guest answered."""

    code = "boot_failed"
    http_status = 502


class BootTimeout(BootError):
    """The guest did not answer in time."""

    code = "boot_timeout"
    http_status = 504


class AgentError(SquibError):
    """The agent in the guest."""


class AgentUnreachable(AgentError):
    """The agent did not complete a request. Its subclasses say why."""

    code = "agent_unreachable"
    http_status = 502


class AgentLost(AgentUnreachable):
    """The connection to the agent broke, or the VM ended."""

    code = "agent_lost"


class AgentTimeout(AgentUnreachable):
    """The agent did not answer in time."""

    code = "agent_timeout"
    http_status = 504


class AgentProtocolError(AgentUnreachable):
    """The guest sent something that the protocol does not allow."""

    code = "agent_protocol_error"


class AgentVersionMismatch(AgentError):
    """The agent speaks another version of the protocol."""

    code = "agent_version_mismatch"
    http_status = 502


class ExecError(SquibError):
    """A command in the guest."""

    http_status = 422


class CommandNotFound(ExecError):
    """The program does not exist in the guest."""

    code = "command_not_found"
    exit_code = 127


class NotExecutable(ExecError):
    """The program exists in the guest and cannot be executed."""

    code = "not_executable"
    exit_code = 126


class NoShell(ExecError):
    """The image has no ``/bin/sh``."""

    code = "no_shell"
    exit_code = 127


class BadWorkingDirectory(ExecError):
    """The working directory does not exist in the guest."""

    code = "bad_cwd"
    exit_code = 126


class NoSuchUser(ExecError):
    """The image has no such user or group."""

    code = "no_such_user"
    exit_code = 126


class NoSuchProcess(ExecError):
    """No process in the guest has this id."""

    code = "no_such_process"
    http_status = 404


class StdinClosed(ExecError):
    """The process does not read its standard input any more."""

    code = "stdin_closed"
    http_status = 409


class NoTerminal(ExecError):
    """The process has no terminal whose size could be set."""

    code = "no_terminal"
    http_status = 409


class CommandFailed(ExecError):
    """A command that was run with ``check=True`` ended with another status than 0."""

    code = "command_failed"


class CommandTimeout(ExecError):
    """A command that was run with ``check=True`` reached its timeout."""

    code = "command_timeout"
    exit_code = 124


class FileError(SquibError):
    """A file of a guest, or one that goes there or comes from there."""

    http_status = 409


class NoSuchFile(FileError):
    """The path, or a directory on the way to it, does not exist."""

    code = "no_such_file"
    http_status = 404


class FileExists(FileError):
    """The path exists, and was to be made."""

    code = "file_exists"


class NotAFile(FileError):
    """The path is not a regular file."""

    code = "not_a_file"


class NotADirectory(FileError):
    """The path is not a directory."""

    code = "not_a_directory"


class DirectoryNotEmpty(FileError):
    """The directory has entries."""

    code = "directory_not_empty"


class PermissionDenied(FileError):
    """The operating system does not allow it."""

    code = "permission_denied"
    http_status = 403


class GuestDiskFull(FileError):
    """The guest's disk has no room."""

    code = "guest_disk_full"
    http_status = 507


class ArchiveRefused(FileError):
    """What a guest sent as a directory is not what may be unpacked on this host."""

    code = "archive_refused"


class TransferFailed(FileError):
    """A copy broke off: a file could not be read or written to its end, or changed meanwhile."""

    code = "transfer_failed"


def _with_subclasses(cls: type[SquibError]) -> list[type[SquibError]]:
    return [cls] + [found for sub in cls.__subclasses__() for found in _with_subclasses(sub)]


BY_CODE: dict[str, type[SquibError]] = {cls.code: cls for cls in _with_subclasses(SquibError) if cls.code}


def to_wire(error: SquibError) -> dict[str, str]:
    """The body of an error answer: ``code``, ``message``, ``hint`` and, if there is one, ``detail``."""
    wire = {"code": error.code or InternalError.code, "message": error.message, "hint": error.hint}
    return wire | {"detail": error.detail} if error.detail else wire


def from_wire(wire: dict[str, str]) -> SquibError:
    """The error that an engine reported, as the class that its code names; `InternalError` for unknown codes."""
    cls = BY_CODE.get(wire.get("code", ""), InternalError)
    return cls(wire.get("message", "unknown error"), hint=wire.get("hint", ""), detail=wire.get("detail", ""))
