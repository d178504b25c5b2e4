"""Snapshots, forks, and the tree of what was made from what."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from squib.models.base import ResponseModel, known_values
from squib.models.engine import WireError
from squib.models.vm import VMInfo

MAX_FORKS = 1000
"""The largest number of forks in one request."""


class SnapshotInfo(ResponseModel):
    """A saved state of a VM, which new VMs can be made from.

    ``vm_id`` and ``vm_name`` are those of the VM when it was saved; it may be deleted. ``disk_only``: it has no memory,
    so VMs that are made from it boot. ``made_with`` says what it needs to go on, by name: VMM, accelerator, CPU.
    """

    snapshot_id: str
    name: str
    vm_id: str
    vm_name: str
    disk_only: bool
    driver: str
    runtime: str | None
    vcpu_count: int
    mem_size_mib: int
    disk_size_mib: int
    size_bytes: int
    made_with: dict[str, str] = Field(default_factory=dict)
    created_at: datetime


class ForkResult(ResponseModel):
    """The result of one fork: the new VM, or the error."""

    vm: VMInfo | None = None
    error: WireError | None = None


class TreeKind(StrEnum):
    """The kinds of nodes in the tree. ``deleted`` is what others were made from and is gone."""

    VM = "vm"
    SNAPSHOT = "snapshot"
    DELETED = "deleted"


class TreeNode(ResponseModel):
    """A VM or a snapshot, and the ID of what it was made from, if anything.

    ``state`` is a VM's, and ``ephemeral`` says that it is deleted with its parent.
    """

    id: str
    name: str
    kind: Annotated[TreeKind, known_values(TreeKind, TreeKind.DELETED)]
    parent_id: str | None
    state: str = ""
    ephemeral: bool = False
    created_at: datetime | None = None
