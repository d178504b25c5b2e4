"""squib: Linux microVMs from Python.

from squib import VM

with VM() as vm:
    print(vm.run("uname -a").output)
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # type checkers take it for true; importing typing would double the time until Ctrl-C is quiet
if TYPE_CHECKING:
    from squib.errors import (
        AgentError,
        AgentLost,
        AgentProtocolError,
        AgentTimeout,
        AgentUnreachable,
        AgentVersionMismatch,
        ArchiveRefused,
        ArgumentsTooLong,
        BadWorkingDirectory,
        BodyTooLarge,
        BootError,
        BootFailed,
        BootTimeout,
        CommandFailed,
        CommandNotFound,
        CommandTimeout,
        Conflict,
        DatabaseFailed,
        DependencyMissing,
        DirectoryNotEmpty,
        DiskFull,
        DownloadFailed,
        EngineError,
        EngineStartFailed,
        EngineUnavailable,
        ExecError,
        FileError,
        FileExists,
        GuestDiskFull,
        GuestFailed,
        HostError,
        HostNotAllowed,
        ImageCorrupt,
        InternalError,
        InvalidArgument,
        IsADirectory,
        NameTaken,
        NoShell,
        NoSuchFile,
        NoSuchProcess,
        NoSuchUser,
        NotADirectory,
        NotAFile,
        NoTerminal,
        NotExecutable,
        NotFound,
        OutputTooLarge,
        PermissionDenied,
        RecordCorrupt,
        SquibError,
        StdinClosed,
        Superseded,
        ToolFailed,
        TransferFailed,
        Unauthorized,
        Unsupported,
        WrongState,
    )
    from squib.models import (
        FileEvent,
        FileEventType,
        FileInfo,
        FileType,
        ProcessInfo,
        PtySize,
        SnapshotInfo,
        VMConfig,
        VMInfo,
        VMState,
    )
    from squib.protocol.frames import CommandEnd
    from squib.sdk.aio import AsyncVM
    from squib.sdk.aio_process import AsyncProcess, OutputChunk
    from squib.sdk.client import EngineClient
    from squib.sdk.env import AsyncEnv, Env, EnvVars
    from squib.sdk.files import AsyncFiles
    from squib.sdk.images import AsyncImages, Images
    from squib.sdk.process import Process
    from squib.sdk.result import CopyResult, ExecResult
    from squib.sdk.snapshots import AsyncSnapshots, Snapshots
    from squib.sdk.syncfiles import Files
    from squib.sdk.vm import VM
    from squib.sdk.watching import AsyncWatch, Watch
    from squib.version import VERSION as __version__

__all__ = [
    "VM",
    "AgentError",
    "AgentLost",
    "AgentProtocolError",
    "AgentTimeout",
    "AgentUnreachable",
    "AgentVersionMismatch",
    "ArchiveRefused",
    "ArgumentsTooLong",
    "AsyncEnv",
    "AsyncFiles",
    "AsyncImages",
    "AsyncProcess",
    "AsyncSnapshots",
    "AsyncVM",
    "AsyncWatch",
    "BadWorkingDirectory",
    "BodyTooLarge",
    "BootError",
    "BootFailed",
    "BootTimeout",
    "CommandEnd",
    "CommandFailed",
    "CommandNotFound",
    "CommandTimeout",
    "Conflict",
    "CopyResult",
    "DatabaseFailed",
    "DependencyMissing",
    "DirectoryNotEmpty",
    "DiskFull",
    "DownloadFailed",
    "EngineClient",
    "EngineError",
    "EngineStartFailed",
    "EngineUnavailable",
    "Env",
    "EnvVars",
    "ExecError",
    "ExecResult",
    "FileError",
    "FileEvent",
    "FileEventType",
    "FileExists",
    "FileInfo",
    "FileType",
    "Files",
    "GuestDiskFull",
    "GuestFailed",
    "HostError",
    "HostNotAllowed",
    "ImageCorrupt",
    "Images",
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
    "OutputChunk",
    "OutputTooLarge",
    "PermissionDenied",
    "Process",
    "ProcessInfo",
    "PtySize",
    "RecordCorrupt",
    "SnapshotInfo",
    "Snapshots",
    "SquibError",
    "StdinClosed",
    "Superseded",
    "ToolFailed",
    "TransferFailed",
    "Unauthorized",
    "Unsupported",
    "VMConfig",
    "VMInfo",
    "VMState",
    "Watch",
    "WrongState",
    "__version__",
]

_HOME = {
    "VM": "squib.sdk.vm",
    "AsyncEnv": "squib.sdk.env",
    "AsyncFiles": "squib.sdk.files",
    "AsyncImages": "squib.sdk.images",
    "AsyncProcess": "squib.sdk.aio_process",
    "AsyncSnapshots": "squib.sdk.snapshots",
    "AsyncVM": "squib.sdk.aio",
    "AsyncWatch": "squib.sdk.watching",
    "CommandEnd": "squib.protocol.frames",
    "EngineClient": "squib.sdk.client",
    "Env": "squib.sdk.env",
    "EnvVars": "squib.sdk.env",
    "CopyResult": "squib.sdk.result",
    "ExecResult": "squib.sdk.result",
    "Files": "squib.sdk.syncfiles",
    "Images": "squib.sdk.images",
    "FileEvent": "squib.models",
    "FileEventType": "squib.models",
    "FileInfo": "squib.models",
    "FileType": "squib.models",
    "OutputChunk": "squib.sdk.aio_process",
    "Process": "squib.sdk.process",
    "ProcessInfo": "squib.models",
    "PtySize": "squib.models",
    "SnapshotInfo": "squib.models",
    "Snapshots": "squib.sdk.snapshots",
    "VMConfig": "squib.models",
    "VMInfo": "squib.models",
    "VMState": "squib.models",
    "Watch": "squib.sdk.watching",
}
"""Where the public names that are no errors live. They are imported at first use: the command line and the engine
start without what they do not need."""


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("squib.version").VERSION
    if name not in __all__:
        raise AttributeError(f"module 'squib' has no attribute {name!r}")
    return getattr(import_module(_HOME.get(name, "squib.errors")), name)
