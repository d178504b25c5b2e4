"""A sandbox for LangChain's Deep Agents: their shell and files are in a VM.

    with SquibSandbox.create() as sandbox:
        agent = create_deep_agent(model=..., backend=sandbox)

Install ``squib[langchain]``. The image needs Python, which all of squib's runtimes have.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self, Unpack

from deepagents.backends.protocol import ExecuteResponse, FileDownloadResponse, FileUploadResponse
from deepagents.backends.sandbox import BaseSandbox

from squib.errors import (
    FileError,
    InvalidArgument,
    IsADirectory,
    NoSuchFile,
    NotADirectory,
    PermissionDenied,
    SquibError,
)
from squib.sdk.config import VMOptions
from squib.sdk.vm import VM

DEFAULT_TIMEOUT_S = 30 * 60
"""How long a command may take if the caller names no timeout."""


class SquibSandbox(BaseSandbox):
    """The tools of an agent, carried out in ``vm``.

    Commands and files belong to the VM's default user, in its default directory. ``timeout_s`` is how many seconds a
    command may take if the caller names no timeout. The VM is the caller's: use `create` for one that lives as long as
    a ``with`` block.
    """

    def __init__(self, vm: VM, *, timeout_s: int = DEFAULT_TIMEOUT_S) -> None:
        self.vm = vm
        self._timeout_s = timeout_s

    @classmethod
    def create(cls, *, timeout_s: int = DEFAULT_TIMEOUT_S, **options: Unpack[VMOptions]) -> SquibSandbox:
        """Register a new VM with ``options``, fields of `VMConfig`.

        The ``with`` block starts and deletes it.
        """
        return cls(VM(**options), timeout_s=timeout_s)

    def __enter__(self) -> Self:
        self.vm.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.vm.__exit__(kind, error, trace)

    @property
    def id(self) -> str:
        """The VM's ID."""
        return self.vm.vm_id

    def execute(self, command: str, *, timeout: int | None = None) -> ExecuteResponse:
        """Run a shell command and return its output and exit code.

        ``timeout`` is in seconds; 0 means no limit. A command that times out is killed, and its exit code is 124.
        """
        timeout_s = self._timeout_s if timeout is None else timeout
        result = self.vm.run(command, timeout=timeout_s)
        output = result.output
        if result.timed_out:
            output += f"\n[the command was killed after {timeout_s} s]"
        return ExecuteResponse(output=output, exit_code=result.exit_code, truncated=result.truncated)

    def upload_files(self, files: list[tuple[str, bytes]]) -> list[FileUploadResponse]:
        """Write files, and create missing parent directories.

        Each answer says what happened to its file.
        """
        return [FileUploadResponse(path=path, error=self._upload(path, content)) for path, content in files]

    def _upload(self, path: str, content: bytes) -> str | None:
        try:
            self.vm.files.write(check_absolute(path), content)
        except (FileError, InvalidArgument) as error:
            return _name(error)
        return None

    def download_files(self, paths: list[str]) -> list[FileDownloadResponse]:
        """Read files.

        Each answer has a file's content, or says what is wrong with it.
        """
        return [self._download(path) for path in paths]

    def _download(self, path: str) -> FileDownloadResponse:
        try:
            return FileDownloadResponse(path=path, content=self.vm.files.read(check_absolute(path)))
        except (FileError, InvalidArgument) as error:
            return FileDownloadResponse(path=path, error=_name(error))


def check_absolute(path: str) -> str:
    """Return ``path``.

    Raises `InvalidArgument` if it is relative: agents name files by absolute paths.
    """
    if not path.startswith("/"):
        raise InvalidArgument(f"{path!r} is not an absolute path")
    return path


def _name(error: SquibError) -> str:
    """Return the name that Deep Agents has for an error, or the message."""
    match error:
        case NoSuchFile():
            return "file_not_found"
        case PermissionDenied():
            return "permission_denied"
        case IsADirectory():
            return "is_directory"
        case InvalidArgument() | NotADirectory():
            return "invalid_path"
    return error.message
