"""Templates: the saved states of VMs that have booted and have no identity yet.

A new VM is a clone of its configuration's template, if there is one: it maps the template's memory copy-on-write, and
gets a copy of its disk. Otherwise it boots, and leaves a template when its agent has answered, before it gets its
identity. Templates can be made again at any time, so a template that does not fit is removed and never an error.

A template's directory is never changed, only removed, and its name is never used again. So a clone gets either all of
its files from one template, or an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from squib.artifacts.building import Build, building
from squib.artifacts.stamp import Stamp
from squib.core.engine import Engine, RunningVM
from squib.core.snapshots import saved
from squib.core.snapshots.making import Making
from squib.drivers.base import MachineSpec, SavedMemory
from squib.errors import ExecError, SquibError
from squib.guest.agent import Identity
from squib.host import files
from squib.models import ExecRequest, StoredModel
from squib.paths import SavedPaths
from squib.store.database import now
from squib.store.records import VMRecord

log = logging.getLogger("squib.templates")

MAX_AGE = timedelta(days=14)
"""Templates that no VM was made from for this long are removed."""
MAX_TOTAL_BYTES = 8 << 30
"""If templates take more space, those that were used longest ago are removed."""
SPARE_BYTES = 256 << 20
"""A template is made only if so much space stays free on the disk, even if it takes as much as the VM's memory."""

_FORMAT_VERSION = 1
_END_SESSION_TIMEOUT_S = 5.0
_GENERATION_BYTES = 4
_NOBODY = Identity("vm-template", "vm-template", "0" * 32)
_MAX_FRAMES_BYTES = 1 << 16


class Manifest(StoredModel):
    """The configuration of a template, and the stamps of its files."""

    version: Literal[1] = 1
    driver: str
    runtime: str | None
    vcpu_count: int
    mem_size_mib: int
    disk_size_mib: int
    created_at: datetime
    files: dict[str, Stamp]


class Template:
    """A template on the disk."""

    def __init__(self, paths: SavedPaths, manifest: Manifest) -> None:
        self.id = paths.root.name.partition(".")[0]
        self.paths = paths
        self.manifest = manifest

    @property
    def memory(self) -> SavedMemory:
        """The state that a clone runs from."""
        return SavedMemory(self.manifest.mem_size_mib, self.paths.memory, self.paths.devices)

    @property
    def size_bytes(self) -> int:
        """The space that it takes on the disk."""
        return saved.size_bytes(self.paths)

    @property
    def used_at(self) -> float:
        """When a VM was last made from it, as a Unix time."""
        return self.paths.manifest.stat().st_mtime


async def template_id(engine: Engine, record: VMRecord, spec: MachineSpec) -> str | None:
    """Return the ID of the template for a new VM: a hash of all that a clone must have in common with it.

    ``None`` if its driver cannot save machines, or the VM is to boot (`VMSpec.cold`).
    """
    driver = engine.drivers.get(record.driver)
    if record.spec.cold or not driver.capabilities.save:
        return None
    inputs = [spec.kernel, spec.initramfs, *(disk.path for disk in spec.disks if disk.read_only)]
    parts = [
        _FORMAT_VERSION,
        driver.name,
        await driver.fingerprint(spec),
        [_identity(engine, path) for path in inputs],
        record.spec.disk_size_mib,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _identity(engine: Engine, path: Path) -> list[object]:
    """Return what changes if the content of a VM's file does: in the cache, the name says what it is."""
    if path.is_relative_to(engine.home.cache):
        return [str(path.relative_to(engine.home.cache))]
    return [str(path), Stamp.of(path).model_dump()]


def find(engine: Engine, template_id: str) -> Template | None:
    """Return a template, and note that it is used. One that is damaged is removed."""
    for template in _each(engine, template_id):
        with contextlib.suppress(FileNotFoundError):  # it has just been removed
            os.utime(template.paths.manifest)
            return template
    return None


def drop(paths: SavedPaths, reason: str) -> None:
    """Remove a template. Its manifest goes first: without it, the files are no template. A failure is logged."""
    log.info("template %s is removed: %s", paths.root.name, reason)
    try:
        if paths.root.is_dir():
            paths.manifest.unlink(missing_ok=True)
        files.remove_tree(paths.root)
    except OSError as error:
        log.warning("template %s could not be removed: %s", paths.root.name, error)


async def leave(engine: Engine, template_id: str, record: VMRecord, vm: RunningVM, *, timeout_s: float) -> None:
    """Make a template of a VM that has just booted, unless there is one; return when the VM may go on.

    That takes about as long as copying the memory that the guest has used; after ``timeout_s`` it is given up. The
    rest happens in the background. A failure is logged.
    """
    busy = engine.making_template is not None and not engine.making_template.finished.is_set()
    if busy or next(_each(engine, template_id), None):
        return
    making = engine.making_template = Making(template_id)
    task = engine.background(_make(engine, making, record, vm), name=f"template {template_id}")
    try:
        async with asyncio.timeout(timeout_s):
            await making.captured.wait()
    except TimeoutError:
        log.warning("no template is made of VM %s: that takes longer than %g s", record.vm_id, timeout_s)
    finally:
        if not making.captured.is_set():
            task.cancel()
            await asyncio.wait({task})


async def _make(engine: Engine, making: Making, record: VMRecord, vm: RunningVM) -> None:
    try:
        free = shutil.disk_usage(engine.home.templates).free
        if free < (record.spec.mem_size_mib << 20) + SPARE_BYTES:
            raise files.disk_full(engine.home.templates)
        async with building(engine.home, "template") as build:
            await _capture(engine, build, record, vm)
            making.captured.set()
            await asyncio.to_thread(_finish, engine, build, making.template_id, record)
        log.info("made template %s of VM %s", making.template_id, record.vm_id)
        prune(engine)
    except (SquibError, OSError) as error:
        making.error = error
        log.warning("no template could be made of VM %s: %s", record.vm_id, error)
    finally:
        making.captured.set()
        making.finished.set()


async def finished(engine: Engine, template_id: str = "") -> Making | None:
    """Wait until the template that is being made, or was last, is finished. With an ID, only if it is that one."""
    making = engine.making_template
    if making and template_id in ("", making.template_id):
        await making.finished.wait()
        return making
    return None


async def _capture(engine: Engine, build: Build, record: VMRecord, vm: RunningVM) -> None:
    """Save the paused guest's memory, devices and disk.

    The agent is left without a session, and frozen: it serves a clone only after a setup.
    """
    paths = SavedPaths(build.folder)
    await _warm_up(vm)
    await vm.agent.end_session(timeout_s=_END_SESSION_TIMEOUT_S)
    try:
        await vm.machine.pause()
        complete = await vm.machine.save(paths.memory, paths.devices, size_mib=record.spec.mem_size_mib)
        await asyncio.to_thread(files.sparse_copy, engine.home.vm(record.vm_id).overlay, paths.overlay)
    finally:
        await vm.machine.resume()
    await complete()


async def _warm_up(vm: RunningVM) -> None:
    """Do once what every clone does first, and freeze the guest.

    A clone then finds in its memory what this has read from the disk, and starts its first command in two thirds of the
    time.
    """
    await vm.agent.setup(_NOBODY, env={})
    with contextlib.suppress(ExecError):  # not every image has a shell
        async with await vm.agent.exec(ExecRequest(argv=["/bin/sh", "-c", "/bin/true"])) as response:
            await response.read(max_bytes=_MAX_FRAMES_BYTES)
    await vm.agent.freeze(sync=False)


def _finish(engine: Engine, build: Build, template_id: str, record: VMRecord) -> None:
    """Flush a template's files to the disk, then describe them, then give the template its name."""
    paths = SavedPaths(build.folder)
    target = engine.home.templates / f"{template_id}.{secrets.token_hex(_GENERATION_BYTES)}"
    saved.sync_all(paths)
    manifest = Manifest(
        driver=record.driver,
        runtime=record.spec.runtime,
        vcpu_count=record.spec.vcpu_count,
        mem_size_mib=record.spec.mem_size_mib,
        disk_size_mib=record.spec.disk_size_mib,
        created_at=now(),
        files={path.name: Stamp.of(path) for path in paths.files},
    )
    files.write_atomic(paths.manifest, manifest.model_dump_json().encode())
    paths.root.rename(target)
    files.sync_directory(target.parent)


def all_templates(engine: Engine) -> list[Template]:
    """Return all templates, the one used last first."""
    return sorted(_each(engine), key=lambda template: template.used_at, reverse=True)


def _each(engine: Engine, template_id: str = "") -> Iterator[Template]:
    """Yield all templates, or those with an ID. Directories that are no templates are removed."""
    for folder in sorted(engine.home.templates.glob(f"{template_id}.*" if template_id else "*")):
        paths = SavedPaths(folder)
        try:
            manifest = Manifest.model_validate_json(paths.manifest.read_bytes())
            for path in paths.files:
                if manifest.files.get(path.name) != Stamp.of(path):
                    raise ValueError(f"{path} has changed since it was made")
        except (OSError, ValueError) as error:
            drop(paths, str(error))
        else:
            yield Template(paths, manifest)


def remove(engine: Engine, template_id: str) -> bool:
    """Remove a template; return whether there was one."""
    found = list(_each(engine, template_id))
    for template in found:
        drop(template.paths, "as requested")
    return bool(found)


def prune(engine: Engine, *, everything: bool = False) -> list[str]:
    """Remove the templates that were not used for `MAX_AGE`, and those beyond `MAX_TOTAL_BYTES`; return their IDs.

    A failure is logged.
    """
    total, removed = 0, []
    try:
        for template in all_templates(engine):
            total += template.size_bytes
            age = now() - datetime.fromtimestamp(template.used_at, tz=now().tzinfo)
            if everything or age > MAX_AGE or total > MAX_TOTAL_BYTES:
                drop(template.paths, "it is pruned")
                removed.append(template.id)
    except OSError as error:
        log.warning("old templates could not be removed: %s", error)
    return removed


def replace_disk(source: Path, overlay: Path) -> None:
    """Replace a VM's disk by a copy of another one, in one step. Raises `DiskFull`, `OSError`."""
    new = overlay.with_name(f"{overlay.name}.new")
    new.unlink(missing_ok=True)
    files.sparse_copy(source, new)
    new.replace(overlay)
