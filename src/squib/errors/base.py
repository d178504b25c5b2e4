"""`SquibError`, and errors of squib, its engine, the host and the agent."""

from __future__ import annotations

import errno
from functools import partial
from typing import ClassVar


class SquibError(Exception):
    """Base of all errors.

    ``code`` is stable and meant for programs. ``message`` is one sentence with the value that failed; ``str`` returns
    it alone. ``hint`` says what to type next on the command line and may be empty. ``detail`` holds longer evidence,
    such as the last lines of a console. A traceback shows all three.
    """

    code: ClassVar[str] = ""
    older_code: ClassVar[str] = ""
    """The code that clients know which were released before the class."""
    _errno: ClassVar[int | None] = None
    """The ``errno`` of a class that is an `OSError`."""

    def __init__(self, message: str, *, hint: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail
        for note in filter(None, (detail, hint)):
            self.add_note(note)
        _set_errno(self, self._errno, message)

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        more = "".join(f", {name}={value!r}" for name in ("hint", "detail") if (value := getattr(self, name)))
        return f"{type(self).__name__}({self.message!r}{more})"

    def __reduce__(self) -> tuple[object, ...]:
        return (partial(type(self), hint=self.hint, detail=self.detail), (self.message,), vars(self))


def _set_errno(error: Exception, number: int | None, message: str) -> None:
    if isinstance(error, OSError):
        error.errno, error.strerror = number, message


class InvalidArgument(SquibError, ValueError):
    """An argument is not valid. Nothing was changed."""

    code = "invalid_argument"


class NotFound(SquibError, LookupError):
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


class Unauthorized(SquibError, PermissionError):
    """The token is missing or wrong."""

    code = "unauthorized"
    _errno = errno.EACCES


class HostNotAllowed(SquibError, PermissionError):
    """The Host header names a host that the engine does not serve.

    This check stops DNS rebinding.
    """

    code = "host_not_allowed"
    _errno = errno.EACCES


class BodyTooLarge(SquibError):
    """The request body is larger than the engine allows."""

    code = "body_too_large"


class EngineError(SquibError):
    """The engine itself failed. Base of the errors below."""


class EngineUnavailable(EngineError, ConnectionError):
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


class DownloadFailed(HostError):
    """A file could not be downloaded, or is not the one that was expected."""

    code = "download_failed"


class DiskFull(HostError, OSError):
    """The disk of the state directory or of a copy's destination is full."""

    code = "disk_full"
    _errno = errno.ENOSPC


class Unsupported(SquibError):
    """The VM's driver or this host does not support the operation."""

    code = "unsupported"


class RecordCorrupt(SquibError):
    """The database record of a VM cannot be read.

    The VM can only be removed.
    """

    code = "record_corrupt"


class ImageCorrupt(SquibError):
    """A cached image or kernel differs from what was stored."""

    code = "image_corrupt"


class BootError(SquibError):
    """The VM did not boot. ``detail`` holds the last lines of its console."""


class BootFailed(BootError):
    """The VMM exited before the guest agent answered."""

    code = "boot_failed"


class BootTimeout(BootError, TimeoutError):
    """The guest agent did not answer before the boot timeout."""

    code = "boot_timeout"
    _errno = errno.ETIMEDOUT


class AgentError(SquibError):
    """The guest agent failed. Base of the errors below."""


class AgentUnreachable(AgentError, ConnectionError):
    """The agent did not complete a request. Its subclasses say why."""

    code = "agent_unreachable"


class AgentLost(AgentUnreachable):
    """The connection to the agent broke, or the VM ended."""

    code = "agent_lost"


class AgentTimeout(AgentUnreachable, TimeoutError):
    """The agent did not answer in time."""

    code = "agent_timeout"
    _errno = errno.ETIMEDOUT


class AgentProtocolError(AgentUnreachable):
    """The guest sent data that the protocol does not allow."""

    code = "agent_protocol_error"


class AgentVersionMismatch(AgentError):
    """The agent speaks another version of the protocol."""

    code = "agent_version_mismatch"


class GuestFailed(AgentError):
    """The guest's operating system refused an operation.

    This class is for reasons that have no class of their own.
    """

    code = "guest_failed"
