"""``start``: boot a VM and wait until its agent responds."""

from __future__ import annotations

from squib.core.engine import Engine
from squib.core.lifecycle import transitions
from squib.core.lifecycle.boot import DEFAULT_BOOT_TIMEOUT_S, boot
from squib.core.lifecycle.verbs import Turn
from squib.core.snapshots import saved
from squib.errors import SquibError, WrongState
from squib.models import VMState
from squib.store.database import now
from squib.store.records import VMRecord
from squib.undo import in_thread


async def start_vm(
    engine: Engine, ref: str, *, boot_timeout_s: float = DEFAULT_BOOT_TIMEOUT_S, cold: bool = False
) -> VMRecord:
    """Boot the VM ``ref``, or let it go on if it is suspended, and return when it is ready.

    A running VM is not changed. With ``cold`` the memory of a suspended VM is discarded, and it boots from its disk.

    The number of simultaneous boots is limited. ``boot_timeout_s`` counts from the start of this VM's VMM. Raises
    `BootFailed` and `BootTimeout`, after which the VM is in ``error``; `WrongState`, `NotFound`; and `Unsupported` if a
    suspended VM cannot go on here. A suspended VM that could not go on is still suspended. One that goes on, and whose
    agent does not answer in time, runs, and is waited for in the background.
    """
    vm_id = engine.store.find(ref).vm_id

    async def start(turn: Turn) -> VMRecord:
        record = engine.store.get_vm(vm_id)
        if record.state is VMState.RUNNING:
            return record
        transitions.transition(engine.store, record, VMState.STARTING)
        try:
            if cold:
                await in_thread(saved.drop_memory, engine.home.vm(vm_id))
            is_new = record.state is VMState.CREATED and not record.spec.parent
            await boot(engine, record, boot_timeout_s=boot_timeout_s, is_new=is_new)
        except WrongState as error:
            _end(engine, record, VMState.STOPPED, error.message)
            raise
        except (SquibError, OSError) as error:
            _end(engine, record, VMState.ERROR, _reason(error))
            raise
        except BaseException:  # a cancellation, or a fault of squib: the VM must not stay in ``starting``
            _end(engine, record, VMState.STOPPED, "the start was cancelled")
            raise
        return engine.store.get_vm(vm_id)

    return await engine.verbs.run(vm_id, "start", start)


def _reason(error: SquibError | OSError) -> str:
    """Say in one line why a boot failed."""
    if isinstance(error, SquibError):
        return error.message.partition("\n")[0]
    return f"{error.filename or 'the host'}: {error.strerror or error}"


def _end(engine: Engine, record: VMRecord, state: VMState, reason: str) -> None:
    if engine.store.get_vm(record.vm_id).state is not VMState.STARTING:
        return  # it goes on from its saved memory, which is nowhere else, though its agent may not have answered yet
    if engine.home.vm(record.vm_id).saved.manifest.exists():
        state = VMState.SUSPENDED
    transitions.transition(engine.store, record, state, reason=reason, pid=None, stopped_at=now())
