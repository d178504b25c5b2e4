"""Request and response bodies that only the API uses."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from squib.core.lifecycle.boot import DEFAULT_BOOT_TIMEOUT_S
from squib.core.lifecycle.stop import DEFAULT_STOP_TIMEOUT_S
from squib.models import (
    MAX_FORKS,
    Check,
    Env,
    EnvName,
    ForkResult,
    ImageInfo,
    KernelInfo,
    Name,
    ProcessInfo,
    Progress,
    PtySize,
    RequestModel,
    ResponseModel,
    SnapshotInfo,
    TemplateInfo,
    TreeNode,
    VMConfig,
    VMInfo,
    WireError,
)
from squib.models.vm import MAX_VERB_TIMEOUT_S


class ErrorBody(ResponseModel):
    """The body of every response with a status of 400 or more."""

    error: WireError


class CreateRequest(RequestModel):
    """A new VM.

    With ``start`` the VM is booted, and the response comes when it is ready. If the boot fails, the VM is removed.
    A ``bound`` VM is deleted if no client holds it (``/hold``) within 10 s of the response.
    """

    config: VMConfig = VMConfig()
    start: bool = False
    bound: bool = False
    boot_timeout_s: float = Field(default=DEFAULT_BOOT_TIMEOUT_S, gt=0, le=MAX_VERB_TIMEOUT_S)


class StartRequest(RequestModel):
    """How long the guest may take to boot, in seconds.

    With ``cold`` the memory of a suspended VM is discarded, and the VM boots from its disk.
    """

    boot_timeout_s: float = Field(default=DEFAULT_BOOT_TIMEOUT_S, gt=0, le=MAX_VERB_TIMEOUT_S)
    cold: bool = False


class SnapshotRequest(RequestModel):
    """What to save of a VM, and how to call it.

    By default the name is the snapshot's ID. With ``disk_only`` the memory is not saved. Without ``resume`` a VM that
    runs is paused afterwards.
    """

    vm: Name
    name: Name | None = None
    disk_only: bool = False
    resume: bool = True


class SnapshotList(ResponseModel):
    """Snapshots, oldest first."""

    snapshots: list[SnapshotInfo]


class ForkRequest(RequestModel):
    """How many forks to make, and how to call them: ``name``, or ``name-1``, ``name-2`` and so on.

    An ephemeral fork is deleted with its parent, and when it stops.
    """

    count: int = Field(default=1, ge=1, le=MAX_FORKS)
    name: Name | None = None
    persistence: Literal["ephemeral", "persistent"] = "ephemeral"
    boot_timeout_s: float = Field(default=DEFAULT_BOOT_TIMEOUT_S, gt=0, le=MAX_VERB_TIMEOUT_S)


class ForkList(ResponseModel):
    """One result for each fork that was asked for."""

    forks: list[ForkResult]


class RollbackRequest(RequestModel):
    """The snapshot to go back to, by ID or name, and how long the VM may take to go on, in seconds."""

    snapshot: Name
    boot_timeout_s: float = Field(default=DEFAULT_BOOT_TIMEOUT_S, gt=0, le=MAX_VERB_TIMEOUT_S)


class Tree(ResponseModel):
    """All VMs and snapshots, each after what it was made from."""

    nodes: list[TreeNode]


class StopRequest(RequestModel):
    """The seconds that the guest may take to power off; 0 forces it off."""

    timeout_s: float = Field(default=DEFAULT_STOP_TIMEOUT_S, ge=0, le=MAX_VERB_TIMEOUT_S)


class SignalRequest(RequestModel):
    """A signal, by its Linux number."""

    signal: int = Field(ge=1, le=64)


class ListenRequest(RequestModel):
    """A TCP address to serve.

    An empty ``token`` stands for the one that the state directory keeps.
    """

    host: str
    port: int = Field(ge=0, le=65_535)
    token: str = Field(default="", repr=False)
    allowed_hosts: tuple[str, ...] = ()


class EnvVars(ResponseModel):
    """The VM-wide environment variables."""

    env: dict[str, str] = Field(repr=False)


class EnvChange(RequestModel):
    """Variables to set and to unset. A name must not be in both."""

    set: Env = Field(default_factory=dict, repr=False)
    unset: list[EnvName] = Field(default_factory=list)


class MkdirRequest(RequestModel):
    """A directory to create with the rights of ``as_user``.

    ``user`` owns it. ``mode`` is in octal digits.
    """

    path: str
    mode: str | None = Field(default=None, pattern="^[0-7]{1,4}$")
    user: str | None = None
    as_user: str | None = None
    parents: bool = False


class RenameRequest(RequestModel):
    """A file's path and its new path."""

    source: str = Field(alias="from")
    target: str = Field(alias="to")
    as_user: str | None = None


class TarResult(ResponseModel):
    """How many entries and bytes of file content were unpacked."""

    entries: int = 0
    bytes: int = 0


class ResizeRequest(PtySize):
    """The new size of a terminal, in characters."""

    rows: int = Field(ge=1, le=65_535)
    cols: int = Field(ge=1, le=65_535)


class TerminalAttach(RequestModel):
    """A terminal to attach to.

    Output starts at ``offset``, or at the oldest byte that is kept.
    """

    id: str = Field(pattern=r"\Ap[0-9]{1,18}\z")
    offset: int = Field(default=0, ge=0, lt=1 << 63)


class TerminalInput(RequestModel):
    """Typed text.

    Bytes that are not UTF-8 are lone surrogates (``\\udc80`` to ``\\udcff``).
    """

    data: str

    @field_validator("data")
    @classmethod
    def _bytes(cls, value: str) -> str:
        try:
            value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise ValueError("contains a surrogate that stands for no byte") from None
        return value


class VMList(ResponseModel):
    """VMs, oldest first."""

    vms: list[VMInfo]


class ProcessList(ResponseModel):
    """Running and kept commands, oldest first."""

    processes: list[ProcessInfo]


class ImageList(ResponseModel):
    """The images in the cache, sorted by name."""

    images: list[ImageInfo]


class KernelList(ResponseModel):
    """The kernels in the cache."""

    kernels: list[KernelInfo]


class TemplateRequest(RequestModel):
    """The configuration of a template to make, and how long its VM may take to boot, in seconds."""

    config: VMConfig = VMConfig()
    boot_timeout_s: float = Field(default=DEFAULT_BOOT_TIMEOUT_S, gt=0, le=MAX_VERB_TIMEOUT_S)


class PruneRequest(RequestModel):
    """With ``all``, every template is removed, not only those that are old or take much space."""

    all: bool = False


class TemplateList(ResponseModel):
    """Templates, the one used last first."""

    templates: list[TemplateInfo]


class PrunedTemplates(ResponseModel):
    """The IDs of the templates that were removed."""

    removed: list[str]


class CheckList(ResponseModel):
    """The results of the doctor's checks, in order."""

    checks: list[Check]


class KernelBuildRequest(RequestModel):
    """Without ``rebuild``, a cached kernel is kept."""

    rebuild: bool = False


class BuildRequest(RequestModel):
    """An image to build. Without ``rebuild``, a cached image is kept."""

    name: Name
    rebuild: bool = False


class ProgressEvent(ResponseModel):
    """A line of a progress stream: a step or, at the end, result or error."""

    progress: Progress | None = None
    vm: VMInfo | None = None
    image: ImageInfo | None = None
    kernel: KernelInfo | None = None
    template: TemplateInfo | None = None
    error: WireError | None = None
