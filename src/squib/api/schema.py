"""Bodies that only the API has."""

from __future__ import annotations

from pydantic import Field, field_validator

from squib.core.lifecycle.start import DEFAULT_BOOT_TIMEOUT_S
from squib.core.lifecycle.stop import DEFAULT_STOP_TIMEOUT_S
from squib.models import (
    Check,
    Env,
    EnvName,
    ImageInfo,
    KernelInfo,
    Name,
    ProcessInfo,
    Progress,
    PtySize,
    RequestModel,
    ResponseModel,
    VMConfig,
    VMInfo,
)


class WireError(ResponseModel):
    """See `squib.errors`."""

    code: str
    message: str
    hint: str = ""
    detail: str = ""


class ErrorBody(ResponseModel):
    """The body of every answer with a status of 400 or more."""

    error: WireError


class CreateRequest(RequestModel):
    """A new VM. With ``start`` the answer comes when it is ready; if it does not come up, nothing of it stays."""

    config: VMConfig = VMConfig()
    start: bool = False
    boot_timeout_s: float = Field(default=DEFAULT_BOOT_TIMEOUT_S, gt=0, le=3600)


class StartRequest(RequestModel):
    """How long the guest may take to answer."""

    boot_timeout_s: float = Field(default=DEFAULT_BOOT_TIMEOUT_S, gt=0, le=3600)


class StopRequest(RequestModel):
    """How long the guest may take to power off; 0 forces it at once."""

    timeout_s: float = Field(default=DEFAULT_STOP_TIMEOUT_S, ge=0, le=3600)


class SignalRequest(RequestModel):
    """A signal, by its number on Linux."""

    signal: int = Field(ge=1, le=64)


class EnvVars(ResponseModel):
    """The VM-wide environment."""

    env: dict[str, str] = Field(repr=False)


class EnvChange(RequestModel):
    """Variables to set and to unset; no name may be in both."""

    set: Env = Field(default_factory=dict, repr=False)
    unset: list[EnvName] = Field(default_factory=list)


class MkdirRequest(RequestModel):
    """A directory to make. ``user`` owns it; ``mode`` is octal digits."""

    path: str
    mode: str | None = Field(default=None, pattern="^[0-7]{1,4}$")
    user: str | None = None
    parents: bool = False


class RenameRequest(RequestModel):
    """A file's present path, and the one it gets."""

    source: str = Field(alias="from")
    target: str = Field(alias="to")


class TarResult(ResponseModel):
    """What was unpacked."""

    entries: int = 0
    bytes: int = 0


class ResizeRequest(PtySize):
    """The new size of a terminal, in characters."""

    rows: int = Field(ge=1, le=65_535)
    cols: int = Field(ge=1, le=65_535)


class TerminalAttach(RequestModel):
    """A terminal that is there: its output from ``offset`` on, or from the oldest that is kept."""

    id: str = Field(pattern=r"\Ap[0-9]{1,18}\z")
    offset: int = Field(default=0, ge=0, lt=1 << 63)


class TerminalInput(RequestModel):
    """What is typed, as text. Bytes that are no UTF-8 are lone surrogates, as everywhere."""

    data: str

    @field_validator("data")
    @classmethod
    def _bytes(cls, value: str) -> str:
        try:
            value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise ValueError("holds half a character") from None
        return value


class VMList(ResponseModel):
    """VMs, oldest first."""

    vms: list[VMInfo]


class ProcessList(ResponseModel):
    """Commands, oldest first."""

    processes: list[ProcessInfo]


class ImageList(ResponseModel):
    """Images, by name."""

    images: list[ImageInfo]


class KernelList(ResponseModel):
    """The kernels in the cache."""

    kernels: list[KernelInfo]


class CheckList(ResponseModel):
    """What doctor has found."""

    """What doctor found, in the order in which it looked."""

    checks: list[Check]


class KernelBuildRequest(RequestModel):
    """Without ``rebuild``, a kernel that is in the cache already is kept."""

    rebuild: bool = False


class BuildRequest(RequestModel):
    """What to build. Without ``rebuild``, what is in the cache already is kept."""

    name: Name
    rebuild: bool = False


class ProgressEvent(ResponseModel):
    """One line of a progress stream: a step or, as the last line, the result or the error."""

    progress: Progress | None = None
    vm: VMInfo | None = None
    image: ImageInfo | None = None
    kernel: KernelInfo | None = None
    error: WireError | None = None
