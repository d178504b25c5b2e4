"""Which cached files are in use, and removing the others.

This is the only module that reads kernel and root filesystem references for the sake of the cache. A new kind of owner
is added in `referenced_digests` and `host_kernels`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from squib.core.engine import Engine
from squib.core.snapshots import catalog
from squib.errors import RecordCorrupt, SquibError
from squib.models import CachedRef, HostFileRef
from squib.store.records import BrokenRecord, VMRecord, VMSpec

log = logging.getLogger("squib.cache")


def referenced_digests(engine: Engine) -> set[str]:
    """Return the digests of the kernels and root filesystems that VMs and snapshots use.

    Raises `RecordCorrupt` if an owner's record is unreadable: what it uses is not known.
    """
    for record in engine.store.all_vms():
        if isinstance(record, BrokenRecord):
            raise RecordCorrupt(
                f"the database record of VM {record.name} is damaged: {record.reason}", hint=f"squib rm {record.vm_id}"
            )
    return {digest for spec in _specs(engine) for digest in digests_of(spec)}


def _specs(engine: Engine) -> list[VMSpec]:
    """Return the specs of all VMs and snapshots. Raises `RecordCorrupt` if a snapshot's is unreadable."""
    return [*(record.spec for record in engine.store.list_vms()), *catalog.specs(engine.home)]


def digests_of(spec: VMSpec) -> set[str]:
    """Return the digests of the cached kernel and root filesystem of a VM."""
    return {ref.digest for ref in (spec.kernel, spec.rootfs) if isinstance(ref, CachedRef)}


def host_kernels(engine: Engine) -> set[Path]:
    """Return the kernels outside the cache that an owner uses."""
    kernels = (spec.kernel for spec in _specs(engine))
    return {Path(ref.path) for ref in kernels if isinstance(ref, HostFileRef)}


def users_of(engine: Engine, digest: str) -> list[str]:
    """Return the names of the VMs and snapshots that use a kernel or root filesystem."""
    vms = [record.name for record in engine.store.list_vms() if digest in digests_of(record.spec)]
    snapshots = catalog.all_snapshots(engine.home)
    return vms + [snapshot.name for snapshot in snapshots if digest in digests_of(snapshot.manifest.spec)]


@contextlib.contextmanager
def choosing(engine: Engine) -> Iterator[None]:
    """Suspend `prune` while a new owner chooses the files of its record."""
    engine.choosing += 1
    try:
        yield
    finally:
        engine.choosing -= 1


def prune(engine: Engine) -> None:
    """Remove unused kernels, images and initramfs archives from the cache.

    Files with a name stay. Nothing is removed while a new owner chooses its files, or if an owner's record is
    unreadable. A later call removes the rest. A failure is logged.
    """
    if engine.choosing:
        return
    try:
        keep = referenced_digests(engine)
        engine.images.prune(keep=keep)
        engine.kernels.prune(keep=keep)
        kernels = engine.kernels.boot_paths() | host_kernels(engine)
        engine.initramfs.prune(kernels=kernels, agent=engine.agent_binary)
    except (SquibError, OSError) as error:
        log.warning("unused files could not be removed from the cache: %s", error)


def prune_after(engine: Engine, record: VMRecord) -> None:
    """Remove the files that only a deleted VM used.

    Usually its files still have names; then nothing is removed.
    """
    if digests_of(record.spec) - engine.kernels.named_digests() - engine.images.named_digests():
        prune(engine)
