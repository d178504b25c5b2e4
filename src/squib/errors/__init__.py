"""Every error squib raises, as one tree.

Each class has its own ``code``. An engine sends the code, and its client raises the same class again
(`squib.protocol.errors`). A message says what failed, with the value. A hint says what to type next.
HTTP statuses are in `squib.api.errors`, exit statuses in `squib.cli.exit_codes`.

Many classes also derive from the built-in exception for the same failure, with its ``errno``: ``except TimeoutError``
and ``except FileNotFoundError`` work. So catch `SquibError` first where both can be raised.

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
    │   ├── DownloadFailed          download_failed
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
    │   ├── CommandTimeout          command_timeout
    │   └── OutputTooLarge          output_too_large
    └── FileError
        ├── NoSuchFile              no_such_file
        ├── FileExists              file_exists
        ├── NotAFile                not_a_file
        │   └── IsADirectory        is_a_directory
        ├── NotADirectory           not_a_directory
        ├── DirectoryNotEmpty       directory_not_empty
        ├── PermissionDenied        permission_denied
        ├── GuestDiskFull           guest_disk_full
        ├── ArchiveRefused          archive_refused
        └── TransferFailed          transfer_failed
"""

from __future__ import annotations

from squib.errors.base import (
    AgentError,
    AgentLost,
    AgentProtocolError,
    AgentTimeout,
    AgentUnreachable,
    AgentVersionMismatch,
    BodyTooLarge,
    BootError,
    BootFailed,
    BootTimeout,
    Conflict,
    DatabaseFailed,
    DependencyMissing,
    DiskFull,
    DownloadFailed,
    EngineError,
    EngineStartFailed,
    EngineUnavailable,
    GuestFailed,
    HostError,
    HostNotAllowed,
    ImageCorrupt,
    InternalError,
    InvalidArgument,
    NameTaken,
    NotFound,
    RecordCorrupt,
    SquibError,
    Superseded,
    ToolFailed,
    Unauthorized,
    Unsupported,
    WrongState,
)
from squib.errors.guest import (
    ArchiveRefused,
    ArgumentsTooLong,
    BadWorkingDirectory,
    CommandFailed,
    CommandNotFound,
    CommandResult,
    CommandTimeout,
    DirectoryNotEmpty,
    ExecError,
    FileError,
    FileExists,
    GuestDiskFull,
    IsADirectory,
    NoShell,
    NoSuchFile,
    NoSuchProcess,
    NoSuchUser,
    NotADirectory,
    NotAFile,
    NoTerminal,
    NotExecutable,
    OutputTooLarge,
    PermissionDenied,
    StdinClosed,
    TransferFailed,
)

__all__ = [
    "AgentError",
    "AgentLost",
    "AgentProtocolError",
    "AgentTimeout",
    "AgentUnreachable",
    "AgentVersionMismatch",
    "ArchiveRefused",
    "ArgumentsTooLong",
    "BadWorkingDirectory",
    "BodyTooLarge",
    "BootError",
    "BootFailed",
    "BootTimeout",
    "CommandFailed",
    "CommandNotFound",
    "CommandResult",
    "CommandTimeout",
    "Conflict",
    "DatabaseFailed",
    "DependencyMissing",
    "DirectoryNotEmpty",
    "DiskFull",
    "DownloadFailed",
    "EngineError",
    "EngineStartFailed",
    "EngineUnavailable",
    "ExecError",
    "FileError",
    "FileExists",
    "GuestDiskFull",
    "GuestFailed",
    "HostError",
    "HostNotAllowed",
    "ImageCorrupt",
    "InternalError",
    "InvalidArgument",
    "IsADirectory",
    "NameTaken",
    "NoShell",
    "NoSuchFile",
    "NoSuchProcess",
    "NoSuchUser",
    "NoTerminal",
    "NotADirectory",
    "NotAFile",
    "NotExecutable",
    "NotFound",
    "OutputTooLarge",
    "PermissionDenied",
    "RecordCorrupt",
    "SquibError",
    "StdinClosed",
    "Superseded",
    "ToolFailed",
    "TransferFailed",
    "Unauthorized",
    "Unsupported",
    "WrongState",
]
