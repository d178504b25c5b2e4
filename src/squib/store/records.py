"""The records of the database, VMs and leases, as plain values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field

from squib.models import AssetRef, StoredModel, VMState
from squib.models.base import Env


class VMSpec(StoredModel):
    """The resources of a VM, as stored: every default is resolved.

    ``parent`` is the key (`Owner.key`) of the VM or the snapshot that it was made from. An ``ephemeral`` VM is deleted
    with its parent, and when it stops.

    ``VMConfig`` is the request; the two may differ. A change that older rows do not match needs a new ``version`` and a
    migration.
    """

    version: Literal[1] = 1
    project: str | None = None
    runtime: str | None = None
    vcpu_count: int = Field(ge=1)
    mem_size_mib: int = Field(ge=1)
    disk_size_mib: int = Field(ge=1)
    kernel: AssetRef
    rootfs: AssetRef
    boot_args: str = ""
    nested: bool = False
    env_vars: Env = Field(default_factory=dict, repr=False)
    cwd: str | None = None
    user: str | None = None
    jailer: bool = True
    cold: bool = False
    driver_reason: str = ""
    parent: str = ""
    ephemeral: bool = False

    def to_json(self) -> str:
        """Encode the spec.

        Unlike pydantic's JSON, this accepts lone surrogates, as in `os.environ`.
        """
        return json.dumps(self.model_dump())

    @classmethod
    def from_json(cls, text: str) -> VMSpec:
        """Decode a stored spec. Raises `ValueError`."""
        return cls.model_validate(json.loads(text))


@dataclass(frozen=True)
class VMRecord:
    """A VM as stored.

    ``driver`` is the name of the driver that runs it. A ``bound`` VM is deleted when its client is gone
    (`squib.core.lifecycle.bonds`).
    """

    vm_id: str
    name: str
    state: VMState
    reason: str
    spec: VMSpec
    driver: str
    accelerator: str
    machine_id: str
    uid: int | None
    pid: int | None
    bound: bool
    created_at: datetime
    started_at: datetime | None
    stopped_at: datetime | None


@dataclass(frozen=True)
class BrokenRecord:
    """A VM whose row cannot be read.

    It can only be listed and removed. ``reason`` says which column is damaged.
    """

    vm_id: str
    name: str
    reason: str


class OwnerKind(StrEnum):
    """The kinds of owners."""

    VM = "vm"
    TEMPLATE = "template"
    SNAPSHOT = "snapshot"
    NETWORK = "network"
    BUILD = "build"


@dataclass(frozen=True)
class Owner:
    """The holder of leases."""

    kind: OwnerKind
    id: str

    @classmethod
    def snapshot(cls, snapshot_id: str) -> Owner:
        """Return the snapshot ``snapshot_id`` as an owner."""
        return cls(OwnerKind.SNAPSHOT, snapshot_id)

    @classmethod
    def vm(cls, vm_id: str) -> Owner:
        """Return the VM ``vm_id`` as an owner."""
        return cls(OwnerKind.VM, vm_id)

    def key(self, role: str = "") -> str:
        """Return the owner's unique key, such as ``vm/vm-7k2m/vmm``.

        ``role`` is its last part: ``vmm``.
        """
        return "/".join(part for part in (self.kind, self.id, role) if part)


class LeaseKind(StrEnum):
    """The kinds of resources. A lease's ``key`` names the resource."""

    DIRECTORY = "directory"
    """The owner's directory. A VM holds it from create to delete."""
    CGROUP = "cgroup"
    """The owner's cgroup. A VM holds it while it runs."""
    PROCESS = "process"
    """One process; the key ends with its role. An owner may hold several. A VM holds them while it runs."""


@dataclass(frozen=True)
class Lease:
    """A note that an owner holds or is about to take a host resource."""

    lease_id: int
    owner: Owner
    kind: LeaseKind
    key: str
