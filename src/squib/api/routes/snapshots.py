"""``/v1/snapshots`` and ``/v1/tree``: saved states of VMs, and who was made from whom."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from squib.api.context import EngineDep, Ref, while_connected
from squib.api.schema import SnapshotList, SnapshotRequest, Tree
from squib.api.streams import ProxyResponse
from squib.core.snapshots import catalog
from squib.core.snapshots.exporting import open_export
from squib.core.snapshots.importing import receiving
from squib.core.snapshots.snapshot import create_snapshot, delete_snapshot
from squib.core.snapshots.tree import tree
from squib.models import Name, SnapshotInfo

router = APIRouter(tags=["snapshots"])

_TAR = "application/x-tar"
_TAR_BODY = {"requestBody": {"required": True, "content": {_TAR: {"schema": {"type": "string", "format": "binary"}}}}}


@router.get("/snapshots")
async def list_snapshots(engine: EngineDep) -> SnapshotList:
    """List the snapshots, oldest first."""
    return SnapshotList(snapshots=[snapshot.describe() for snapshot in catalog.all_snapshots(engine.home)])


@router.post("/snapshots", status_code=201)
async def create(engine: EngineDep, request: Request, body: SnapshotRequest) -> SnapshotInfo:
    """Save the state of a VM. The response comes when it is on the disk.

    If the client disconnects before, nothing is saved.
    """
    work = create_snapshot(engine, body.vm, name=body.name, disk_only=body.disk_only, go_on=body.resume)
    return (await while_connected(request, work)).describe()


@router.post("/snapshots/import", status_code=201, openapi_extra=_TAR_BODY)
async def import_(
    engine: EngineDep,
    request: Request,
    name: Annotated[Name | None, Query(description="its name; by default the one that it had")] = None,
) -> SnapshotInfo:
    """Store the request body, an exported snapshot, as a new snapshot. The response comes when it is on the disk.

    If the client disconnects before, nothing is stored.
    """
    async with receiving(engine, request.stream(), name=name) as received:
        return (await while_connected(request, received.publish())).describe()


@router.get("/snapshots/{ref}/export", response_class=Response, responses={200: {"content": {_TAR: {}}}})
async def export(engine: EngineDep, ref: Ref) -> Response:
    """Return a snapshot as a file for another machine. It is whole even if the snapshot is deleted meanwhile.

    If reading fails midway, the response ends before its content-length.
    """
    return ProxyResponse(await open_export(engine, ref), _TAR)


@router.get("/snapshots/{ref}")
async def get(engine: EngineDep, ref: Ref) -> SnapshotInfo:
    """Describe a snapshot."""
    return catalog.find(engine.home, ref).describe()


@router.delete("/snapshots/{ref}", status_code=204)
async def delete(engine: EngineDep, ref: Ref) -> None:
    """Delete a snapshot. VMs that were made from it go on."""
    await delete_snapshot(engine, ref)


@router.get("/tree")
async def get_tree(engine: EngineDep) -> Tree:
    """List all VMs and snapshots, each after what it was made from."""
    return Tree(nodes=tree(engine))
