"""Templates for users: list, build, remove, prune."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

from squib.core.engine import Engine
from squib.core.lifecycle.boot import DEFAULT_BOOT_TIMEOUT_S, template_of
from squib.core.lifecycle.create import choose_driver, create_vm, new_id
from squib.core.lifecycle.delete import delete_vm
from squib.core.snapshots import templates
from squib.core.snapshots.templates import Template
from squib.errors import HostError, NotFound, Unsupported
from squib.models import OnProgress, TemplateInfo, VMConfig


def list_templates(engine: Engine) -> list[TemplateInfo]:
    """List the templates, the one used last first."""
    return [_describe(template) for template in templates.all_templates(engine)]


async def build_template(
    engine: Engine,
    config: VMConfig,
    *,
    boot_timeout_s: float = DEFAULT_BOOT_TIMEOUT_S,
    on_progress: OnProgress,
) -> TemplateInfo:
    """Make the template of a configuration, unless there is one, by creating a VM and deleting it.

    Raises `Unsupported` if the configuration's driver cannot save VMs, the errors of `create_vm`, and `HostError`,
    `DiskFull` or `ToolFailed` if the VM could not be saved.
    """
    driver = choose_driver(engine, config).driver
    if not driver.capabilities.save:
        text = f"the driver {driver.name} cannot save VMs, so there are no templates for it"
        raise Unsupported(text, hint="use another driver: --driver qemu")
    vm_id = new_id()
    config = config.model_copy(update={"vm_id": vm_id, "name": None, "cold": False})
    await templates.finished(engine)  # only one is made at a time
    engine.holders[vm_id] += 1  # a bound VM, so that it does not outlive an engine that is killed
    try:
        record = await create_vm(
            engine, config, start=True, bound=True, on_progress=on_progress, boot_timeout_s=boot_timeout_s
        )
        template_id = await template_of(engine, record)
        assert template_id is not None  # its driver can save
        making = await templates.finished(engine, template_id)
        template = templates.find(engine, template_id)
    finally:
        with contextlib.suppress(NotFound):  # a user has deleted it
            await delete_vm(engine, vm_id)
        engine.holders.pop(vm_id, None)
    if template is None:
        if making and making.error:
            raise making.error
        raise HostError("the template could not be made", hint="squib logs --engine shows why")
    return _describe(template)


def remove_template(engine: Engine, template_id: str) -> None:
    """Remove a template. VMs that run from it go on.

    Raises `NotFound`.
    """
    if not templates.remove(engine, template_id):
        raise NotFound(f"there is no template {template_id}", hint="squib template ls")


def prune_templates(engine: Engine, *, everything: bool) -> list[str]:
    """Remove templates that were not used for long or take much space, or all; return their IDs."""
    return templates.prune(engine, everything=everything)


def _describe(template: Template) -> TemplateInfo:
    manifest = template.manifest
    return TemplateInfo(
        template_id=template.id,
        driver=manifest.driver,
        runtime=manifest.runtime or "",
        vcpu_count=manifest.vcpu_count,
        mem_size_mib=manifest.mem_size_mib,
        disk_size_mib=manifest.disk_size_mib,
        size_bytes=template.size_bytes,
        created_at=manifest.created_at,
        used_at=datetime.fromtimestamp(template.used_at, tz=UTC),
    )
