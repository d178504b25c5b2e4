"""``list`` and ``inspect``: describe VMs.

Descriptions never contain values of environment variables.
"""

from __future__ import annotations

from datetime import UTC, datetime

from squib.core.engine import Engine
from squib.models import VMDetails, VMInfo, VMState
from squib.store.records import BrokenRecord, VMRecord


def describe(record: VMRecord | BrokenRecord) -> VMInfo:
    """Describe a VM for clients.

    A VM whose record cannot be read is in the state ``error``.
    """
    if isinstance(record, BrokenRecord):
        return _describe_broken(record)
    spec = record.spec
    return VMInfo(
        vm_id=record.vm_id,
        name=record.name,
        state=record.state,
        reason=record.reason,
        project=spec.project,
        runtime=spec.runtime,
        kernel=str(spec.kernel),
        rootfs=str(spec.rootfs),
        vcpu_count=spec.vcpu_count,
        mem_size_mib=spec.mem_size_mib,
        disk_size_mib=spec.disk_size_mib,
        boot_args=spec.boot_args,
        env_names=sorted(spec.env_vars),
        driver=record.driver,
        accelerator=record.accelerator,
        pid=record.pid,
        created_at=record.created_at,
        started_at=record.started_at,
        stopped_at=record.stopped_at,
    )


def _describe_broken(record: BrokenRecord) -> VMInfo:
    return VMInfo(
        vm_id=record.vm_id,
        name=record.name,
        state=VMState.ERROR,
        reason=f"its database record is damaged; to delete the VM: squib rm {record.vm_id} ({record.reason})",
        project=None,
        runtime=None,
        kernel="",
        rootfs="",
        vcpu_count=0,
        mem_size_mib=0,
        disk_size_mib=0,
        boot_args="",
        env_names=[],
        driver="",
        accelerator="",
        pid=None,
        created_at=datetime.fromtimestamp(0, UTC),
        started_at=None,
        stopped_at=None,
    )


def list_vms(engine: Engine, *, project: str | None = None) -> list[VMInfo]:
    """Return all VMs, or those of one project; oldest first."""
    infos = [describe(record) for record in engine.store.all_vms()]
    return [info for info in infos if project is None or info.project == project]


def get_details(engine: Engine, ref: str) -> VMDetails:
    """Return all details of the VM with this ID or name. Raises `NotFound`."""
    record = engine.store.find(ref)
    reason = record.spec.driver_reason if isinstance(record, VMRecord) else ""
    return VMDetails(**describe(record).model_dump(), driver_reason=reason)


def get_vm(engine: Engine, ref: str) -> VMInfo:
    """Return the VM with this ID or name. Raises `NotFound`."""
    return describe(engine.store.find(ref))
