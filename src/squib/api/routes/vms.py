"""``/v1/vms``: create, list, start, stop, pause and delete VMs."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from squib.api.context import EngineDep, Ref, while_connected
from squib.api.peer import is_local, while_client_runs
from squib.api.schema import (
    CreateRequest,
    ForkList,
    ForkRequest,
    ProgressEvent,
    RollbackRequest,
    StartRequest,
    StopRequest,
    VMList,
)
from squib.api.streams import NDJSON, ProgressResponse, accepts_ndjson
from squib.core.inspect import describe, get_details, get_vm, list_vms
from squib.core.lifecycle.bonds import client_left, hold_vm, release_vm
from squib.core.lifecycle.create import create_vm
from squib.core.lifecycle.delete import delete_vm
from squib.core.lifecycle.pause import pause_vm, resume_vm
from squib.core.lifecycle.start import start_vm
from squib.core.lifecycle.stop import stop_vm
from squib.core.lifecycle.suspend import suspend_vm
from squib.core.snapshots.fork import fork_vm
from squib.core.snapshots.rollback import rollback_vm
from squib.errors import SquibError, Unsupported
from squib.models import ForkResult, Name, OnProgress, VMConfig, VMDetails, VMInfo, WireError
from squib.protocol.errors import to_wire
from squib.store.records import VMRecord

router = APIRouter(prefix="/vms", tags=["vms"])

_PROGRESS = "with Accept: application/x-ndjson, a ProgressEvent a line; the last one holds the VM or the error"


@router.get("")
async def list_all(engine: EngineDep, project: Name | None = None) -> VMList:
    """List all VMs, or the VMs of one project, oldest first."""
    return VMList(vms=list_vms(engine, project=project))


@router.post(
    "", status_code=201, response_model=VMInfo, responses={200: {"content": {NDJSON: {}}, "description": _PROGRESS}}
)
async def create(engine: EngineDep, request: Request, body: CreateRequest) -> VMInfo | Response:
    """Create a VM and, with ``start``, boot it.

    With ``Accept: application/x-ndjson`` the response streams the progress. If the client disconnects before the
    response is complete, the VM is removed.
    """

    check_jailer(body.config, request)

    async def work(on_progress: OnProgress) -> VMInfo:
        record = await create_vm(
            engine,
            body.config,
            start=body.start,
            bound=body.bound,
            on_progress=on_progress,
            boot_timeout_s=body.boot_timeout_s,
        )
        return describe(record)

    async def streamed(on_progress: OnProgress) -> ProgressEvent:
        return ProgressEvent(vm=await work(on_progress))

    if accepts_ndjson(request):
        return ProgressResponse(streamed)
    return await while_connected(request, work(lambda _: None))


@router.get("/{ref}")
async def get(engine: EngineDep, ref: Ref) -> VMInfo:
    """Describe a VM."""
    return get_vm(engine, ref)


@router.get("/{ref}/details")
async def details(engine: EngineDep, ref: Ref) -> VMDetails:
    """Describe a VM in all details."""
    return get_details(engine, ref)


@router.post("/{ref}/start")
async def start(engine: EngineDep, ref: Ref, body: StartRequest) -> VMInfo:
    """Start a VM and wait until it is ready. A suspended VM goes on.

    Does nothing if it already runs.
    """
    return describe(await start_vm(engine, ref, boot_timeout_s=body.boot_timeout_s, cold=body.cold))


@router.post("/{ref}/stop")
async def stop(engine: EngineDep, ref: Ref, body: StopRequest) -> VMInfo:
    """Stop a VM, by force after the timeout.

    Does nothing if it does not run.
    """
    return describe(await stop_vm(engine, ref, timeout_s=body.timeout_s))


@router.post("/{ref}/pause")
async def pause(engine: EngineDep, ref: Ref) -> VMInfo:
    """Pause a VM: memory is kept, no CPU is used.

    Does nothing if it is already paused.
    """
    return describe(await pause_vm(engine, ref))


@router.post("/{ref}/resume")
async def resume(engine: EngineDep, ref: Ref) -> VMInfo:
    """Resume a paused VM. Does nothing if it already runs."""
    return describe(await resume_vm(engine, ref))


@router.post("/{ref}/suspend")
async def suspend(engine: EngineDep, ref: Ref) -> VMInfo:
    """Suspend a VM: its memory goes to the disk, and a start lets it go on. Does nothing if it is suspended."""
    return describe(await suspend_vm(engine, ref))


@router.post("/{ref}/fork")
async def fork(engine: EngineDep, ref: Ref, request: Request, body: ForkRequest) -> ForkList:
    """Make more VMs of one that runs. The response has a result for each: a VM, or an error.

    If the client disconnects before, all are removed.
    """
    made = await while_connected(
        request,
        fork_vm(
            engine,
            ref,
            count=body.count,
            name=body.name,
            ephemeral=body.persistence == "ephemeral",
            boot_timeout_s=body.boot_timeout_s,
        ),
    )
    return ForkList(forks=[_fork_result(fork) for fork in made])


def _fork_result(made: VMRecord | SquibError) -> ForkResult:
    if isinstance(made, SquibError):
        return ForkResult(error=WireError(**to_wire(made)))
    return ForkResult(vm=describe(made))


@router.post("/{ref}/rollback")
async def rollback(engine: EngineDep, ref: Ref, body: RollbackRequest) -> VMInfo:
    """Take a VM back to a snapshot, in place, and start it. What it did since is lost."""
    return describe(await rollback_vm(engine, ref, body.snapshot, boot_timeout_s=body.boot_timeout_s))


@router.delete("/{ref}", status_code=204)
async def delete(engine: EngineDep, ref: Ref) -> None:
    """Delete a VM and its disk. The response comes when it is deleted."""
    await delete_vm(engine, ref)


@router.post("/{ref}/hold", status_code=204)
async def hold(engine: EngineDep, ref: Ref, request: Request, if_bound: bool = False) -> None:
    """Bind a VM to this request: it is deleted if the client disconnects.

    On the unix socket the VM is also deleted when the client's process has ended and others still have its connection.
    If several clients hold a VM, it is deleted when the last one disconnects. The response comes when the VM has been
    deleted by other means. With ``if_bound``, a VM that is not bound is left as it is, and the response comes at once.

    An engine that exits deletes nothing: the client repeats the request to the next engine, which waits 10 s for it.
    """
    try:
        await while_connected(request, while_client_runs(request, hold_vm(engine, ref, if_bound=if_bound)))
    except ClientDisconnect:
        await client_left(engine, ref)
        raise


@router.delete("/{ref}/hold", status_code=204)
async def release(engine: EngineDep, ref: Ref) -> None:
    """Make a bound VM independent of its clients.

    Requests that hold it may end.
    """
    await release_vm(engine, ref)


def check_jailer(config: VMConfig, request: Request) -> None:
    """Check that a VM without its jailer is asked for by a local client. Raises `Unsupported`."""
    if not config.jailer and not is_local(request):
        raise Unsupported("a VM without its jailer cannot be created over TCP", hint="leave out --no-jailer")
