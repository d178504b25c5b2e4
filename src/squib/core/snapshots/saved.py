"""The state that a VM goes on from when it starts: of a suspended VM, a fork, or a VM made from a snapshot.

It is in the VM's directory (`squib.paths.VMPaths.saved`), with files of its own or links to others that never change.
It is there as a whole or not at all, from the moment in which its manifest is complete. It is removed before the guest
goes on, because the disk then changes. So a VM that runs and has a saved state is about to be ended.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Literal

from squib.drivers.base import SavedMemory
from squib.errors import HostError, Unsupported
from squib.host import files
from squib.models import StoredModel
from squib.paths import SavedPaths, VMPaths
from squib.undo import Undo, in_thread


class MachineState(StoredModel):
    """What a saved memory needs to go on.

    ``fingerprint`` is what the machine must have in common with the one that was saved
    (`squib.drivers.base.Driver.fingerprint`).
    """

    mem_size_mib: int
    fingerprint: dict[str, str]


class SavedState(StoredModel):
    """The manifest of a saved state.

    Without a ``machine`` it is only a disk, and the VM boots. With ``same_boot`` the VM goes on as itself, with the
    boot ID that it has.
    """

    version: Literal[1] = 1
    machine: MachineState | None
    same_boot: bool
    created_at: datetime


def find(vm: VMPaths) -> SavedState | None:
    """Return a VM's saved state, or ``None`` if it has none.

    Raises `HostError` if it cannot be read.
    """
    try:
        return SavedState.model_validate_json(vm.saved.manifest.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise HostError(
            f"the saved state {vm.saved.root} cannot be read: {error}",
            hint=f"squib start --cold {vm.root.name} discards it and boots from the disk",
        ) from error


def memory_of(paths: SavedPaths, machine: MachineState) -> SavedMemory:
    """Return the memory to go on from."""
    return SavedMemory(machine.mem_size_mib, paths.memory, paths.devices)


def check_fits(what: str, machine: MachineState, fingerprint: dict[str, str], *, hint: str) -> None:
    """Check that a machine with this fingerprint can go on from the saved state ``what``.

    Raises `Unsupported`, which names the differences.
    """
    names = sorted(machine.fingerprint.keys() | fingerprint.keys())
    changed = [name for name in names if machine.fingerprint.get(name) != fingerprint.get(name)]
    if changed:
        changes = "; ".join(_change(name, machine.fingerprint, fingerprint) for name in changed)
        raise Unsupported(f"{what} cannot be resumed here: {changes}", hint=hint)


def _change(name: str, saved: dict[str, str], here: dict[str, str]) -> str:
    if name == "machine":
        return "the VMM's command line differs (another version of squib, or other options)"
    before, after = saved.get(name, "none"), here.get(name, "none")
    if max(len(before), len(after)) > 40 or "\n" in before + after:  # no user reads a CPU's list of flags
        return f"the {name} differs"
    return f"its {name} was {before}, here it is {after}"


@contextlib.asynccontextmanager
async def preparing(vm: VMPaths) -> AsyncIterator[SavedPaths]:
    """Yield a new empty directory for a saved state, which `commit` makes the VM's. Otherwise it is removed."""
    await in_thread(files.remove_tree, vm.saving.root)
    try:
        with files.disk_errors(vm.root):
            vm.saving.root.mkdir(mode=0o700)
        yield vm.saving
    finally:
        await in_thread(files.remove_tree, vm.saving.root)


def commit(vm: VMPaths, state: SavedState, *, durable: bool) -> None:
    """Make the directory of `preparing` the state that the VM goes on from, in one step.

    ``durable``: it is still there after a power failure. If this fails, the VM has no saved state.

    Raises `DiskFull`, `OSError`.
    """
    with files.disk_errors(vm.root), Undo(lambda: _withdraw(vm)):
        if state.machine and not (vm.saving.memory.exists() and vm.saving.devices.exists()):
            raise HostError(f"{vm.saving.root} is not complete", hint="squib logs --engine shows why")
        if durable:
            sync_all(vm.saving)
        files.write_atomic(vm.saving.manifest, state.model_dump_json().encode())  # from here on it is complete
        settle(vm)


def _withdraw(vm: VMPaths) -> None:
    for paths in (vm.saving, vm.saved):
        paths.manifest.unlink(missing_ok=True)


def settle(vm: VMPaths) -> None:
    """Finish a `commit` that was interrupted, or remove what it left. Idempotent."""
    if vm.saving.manifest.exists():
        discard(vm)
        vm.saving.root.rename(vm.saved.root)
        files.sync_directory(vm.root)
    else:
        files.remove_tree(vm.saving.root)


def sync_all(paths: SavedPaths) -> None:
    """Flush the files of a saved state, and their names, to the disk."""
    for path in paths.files:
        with contextlib.suppress(FileNotFoundError):
            files.sync(path)
    files.sync_directory(paths.root)


def flush(paths: SavedPaths) -> dict[str, str]:
    """Flush the files of a saved state to the disk; return their digests by name. Raises `DiskFull`, `OSError`."""
    with files.disk_errors(paths.root):
        sync_all(paths)
    return {path.name: files.sparse_sha256(path) for path in paths.files if path.exists()}


def link(source: SavedPaths, target: SavedPaths, *, disk: bool, machine: bool) -> None:
    """Give ``target`` the files of ``source``: a copy of the disk, and links to the memory and the devices.

    Raises `DiskFull`, `OSError`.
    """
    with files.disk_errors(target.root):
        if disk:
            files.sparse_copy(source.overlay, target.overlay)
        if machine:
            files.link_or_copy(source.memory, target.memory)
            files.link_or_copy(source.devices, target.devices)


def take_disk(vm: VMPaths) -> None:
    """Make the disk of a saved state the VM's, if it has one. Idempotent."""
    with contextlib.suppress(FileNotFoundError):
        vm.saved.overlay.replace(vm.overlay)


def discard(vm: VMPaths) -> None:
    """Remove a VM's saved state, if it has one. Its manifest goes first, for good. Idempotent."""
    if vm.saved.root.exists():
        vm.saved.manifest.unlink(missing_ok=True)
        files.sync_directory(vm.saved.root)
        files.remove_tree(vm.saved.root)


def drop_memory(vm: VMPaths) -> None:
    """Remove a VM's saved state, if it has one, but for its disk. Idempotent."""
    take_disk(vm)
    discard(vm)


def size_bytes(paths: SavedPaths) -> int:
    """Return the space that a saved state takes on the disk."""
    total = 0
    for path in paths.files:
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total


def missing_file(paths: SavedPaths, *, machine: bool) -> Path | None:
    """Return a file that is missing in a saved state with a disk of its own, or ``None``."""
    wanted = paths.files if machine else (paths.overlay,)
    return next((path for path in wanted if not path.is_file()), None)
