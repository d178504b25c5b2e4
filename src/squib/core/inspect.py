"""``list`` and ``inspect``: what the engine tells of its VMs. Values of environment variables are not among it."""

from __future__ import annotations

from squib.core.engine import Engine
from squib.models import VMInfo
from squib.store.database import VMRecord


def describe(engine: Engine, record: VMRecord) -> VMInfo:
    """A VM as its users see it."""
    config = record.config
    assert config.mem_size_mib is not None, "the memory size is settled when a VM is created"
    return VMInfo(
        vm_id=record.vm_id,
        name=record.name,
        state=record.state,
        reason=record.reason,
        project=config.project,
        runtime=None if config.rootfs_path else config.runtime,
        kernel=record.kernel,
        rootfs=record.rootfs,
        vcpu_count=config.vcpu_count,
        mem_size_mib=config.mem_size_mib,
        disk_size_mib=config.disk_size_mib,
        boot_args=config.boot_args,
        env_names=sorted(config.env_vars),
        driver=engine.driver.name,
        accelerator=record.accelerator,
        pid=record.pid,
        created_at=record.created_at,
        started_at=record.started_at,
        stopped_at=record.stopped_at,
    )


def list_vms(engine: Engine, *, project: str | None = None) -> list[VMInfo]:
    """All VMs, or those of one project; oldest first."""
    records = engine.store.list_vms()
    return [describe(engine, record) for record in records if project is None or record.config.project == project]


def get_vm(engine: Engine, ref: str) -> VMInfo:
    """The VM with this ID or name. Raises `NotFound`."""
    return describe(engine, engine.store.get_vm(ref))
