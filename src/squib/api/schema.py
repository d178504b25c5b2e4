"""Bodies that only the API has."""

from __future__ import annotations

from pydantic import Field

from squib.core.start import DEFAULT_BOOT_TIMEOUT_S
from squib.core.stop import DEFAULT_STOP_TIMEOUT_S
from squib.models import Check, ImageInfo, KernelInfo, Model, Progress, VMConfig, VMInfo


class WireError(Model):
    """See `squib.errors`."""

    code: str
    message: str
    hint: str = ""
    detail: str = ""


class ErrorBody(Model):
    """The body of every answer with a status of 400 or more."""

    error: WireError


class CreateRequest(Model):
    """A new VM. With ``start`` the answer comes when it is ready; if it does not come up, nothing of it stays."""

    config: VMConfig = VMConfig()
    start: bool = False
    boot_timeout_s: float = Field(default=DEFAULT_BOOT_TIMEOUT_S, gt=0, le=3600)


class StartRequest(Model):
    boot_timeout_s: float = Field(default=DEFAULT_BOOT_TIMEOUT_S, gt=0, le=3600)


class StopRequest(Model):
    timeout_s: float = Field(default=DEFAULT_STOP_TIMEOUT_S, ge=0, le=3600)


class SignalRequest(Model):
    signal: int = Field(ge=1, le=64)


class VMList(Model):
    vms: list[VMInfo]


class ImageList(Model):
    images: list[ImageInfo]


class KernelList(Model):
    kernels: list[KernelInfo]


class CheckList(Model):
    """What doctor found, in the order in which it looked."""

    checks: list[Check]


class KernelBuildRequest(Model):
    """Without ``rebuild``, a kernel that is in the cache already is kept."""

    rebuild: bool = False


class BuildRequest(Model):
    """What to build. Without ``rebuild``, what is in the cache already is kept."""

    name: str
    rebuild: bool = False


class BuildEvent(Model):
    """One line of the answer to a build: progress, or, as the last line, the result or the error."""

    progress: Progress | None = None
    image: ImageInfo | None = None
    kernel: KernelInfo | None = None
    error: WireError | None = None
