"""``/v1/vms/{ref}/files``: read, write and copy files of a guest.

Queries, bodies and responses have the guest agent's format (``protocol/agent.md``).
"""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from squib.api.context import EngineDep, Ref
from squib.api.schema import MkdirRequest, RenameRequest, TarResult
from squib.api.streams import NDJSON, ProxyResponse
from squib.core.guestio import files
from squib.errors import InvalidArgument
from squib.models import FileInfo
from squib.protocol.guestfiles import decode_query

router = APIRouter(prefix="/vms/{ref}/files", tags=["files"])

BYTES, TAR = "application/octet-stream", "application/x-tar"
_PATH = "a path in the guest; its bytes are percent-encoded"
_BODY = {"requestBody": {"required": True, "content": {BYTES: {"schema": {"type": "string", "format": "binary"}}}}}
_TAR_BODY = {"requestBody": {"required": True, "content": {TAR: {"schema": {"type": "string", "format": "binary"}}}}}


async def _paths(request: Request, path: Annotated[list[str], Query(description=_PATH)]) -> list[str]:
    """Return the paths of the query.

    FastAPI would lose bytes that are not UTF-8.
    """
    return [value for name, value in decode_query(request.scope["query_string"]) if name == "path"]


async def _path(paths: Annotated[list[str], Depends(_paths)]) -> str:
    if len(paths) != 1:
        raise InvalidArgument(f"path: expected one path, got {len(paths)}")
    return paths[0]


def _last(request: Request, wanted: str) -> str | None:
    """Return a value of the query.

    FastAPI would lose bytes that are not UTF-8.
    """
    found = [value for name, value in decode_query(request.scope["query_string"]) if name == wanted]
    return found[-1] if found else None


async def _user(
    request: Request,
    user: Annotated[str | None, Query(description="the owner of new files, in the syntax of exec's user")] = None,
) -> str | None:
    return _last(request, "user")


async def _as_user(
    request: Request,
    as_user: Annotated[str | None, Query(description="the user with whose rights this is done")] = None,
) -> str | None:
    return _last(request, "as_user")


Path = Annotated[str, Depends(_path)]
Paths = Annotated[list[str], Depends(_paths)]
User = Annotated[str | None, Depends(_user)]
AsUser = Annotated[str | None, Depends(_as_user)]
Mode = Annotated[str | None, Query(pattern="^[0-7]{1,4}$", description="permissions in octal digits")]
Size = Annotated[int, Query(ge=0, lt=1 << 63)]
Parents = Annotated[bool, Query(description="create missing parent directories")]


def _info_response(info: FileInfo) -> Response:
    """Return a file description as ASCII JSON.

    A file name may hold bytes that are not UTF-8.
    """
    return Response(json.dumps(info.model_dump(mode="json")).encode("ascii"), media_type="application/json")


@router.get("", response_class=Response, responses={200: {"content": {BYTES: {}}}})
async def read(
    engine: EngineDep,
    ref: Ref,
    path: Path,
    as_user: AsUser,
    offset: Size = 0,
    length: Annotated[int | None, Query(ge=0, lt=1 << 63)] = None,
) -> Response:
    """Return the bytes of a regular file.

    If reading fails midway, the response ends before its content-length.
    """
    return ProxyResponse(await files.read(engine, ref, path, offset=offset, length=length, as_user=as_user), BYTES)


@router.put("", response_model=FileInfo, openapi_extra=_BODY)
async def write(
    engine: EngineDep,
    ref: Ref,
    path: Path,
    request: Request,
    user: User,
    as_user: AsUser,
    mode: Mode = None,
    parents: Parents = False,
    mtime_ns: Annotated[
        int | None, Query(ge=-(1 << 63), lt=1 << 63, description="modification time; by default now")
    ] = None,
) -> Response:
    """Write the request body to a file, atomically, and describe the file.

    If the client disconnects midway, nothing has changed.
    """
    return _info_response(
        await files.write(
            engine,
            ref,
            path,
            request.stream(),
            mode=mode,
            user=user,
            parents=parents,
            mtime_ns=mtime_ns,
            as_user=as_user,
        )
    )


@router.delete("", status_code=204)
async def remove(engine: EngineDep, ref: Ref, path: Path, as_user: AsUser, recursive: bool = False) -> None:
    """Remove a file or empty directory; with ``recursive``, any directory."""
    await files.remove(engine, ref, path, recursive=recursive, as_user=as_user)


@router.get("/stat", response_model=FileInfo)
async def stat(engine: EngineDep, ref: Ref, path: Path, as_user: AsUser, follow: bool = True) -> Response:
    """Describe a file.

    With ``follow=false``, describe a symbolic link itself.
    """
    return _info_response(await files.stat(engine, ref, path, follow=follow, as_user=as_user))


@router.get("/list", response_class=Response, responses={200: {"content": {NDJSON: {}}}})
async def list_directory(engine: EngineDep, ref: Ref, path: Path, as_user: AsUser) -> Response:
    """List a directory as JSON lines, one `FileInfo` each, in no order.

    The last line is ``{"end": true}``.
    """
    return ProxyResponse(await files.list_directory(engine, ref, path, as_user=as_user), NDJSON)


@router.post("/mkdir", status_code=204)
async def mkdir(engine: EngineDep, ref: Ref, body: MkdirRequest) -> None:
    """Create a directory."""
    await files.mkdir(
        engine, ref, body.path, mode=body.mode, user=body.user, parents=body.parents, as_user=body.as_user
    )


@router.post("/rename", status_code=204)
async def rename(engine: EngineDep, ref: Ref, body: RenameRequest) -> None:
    """Rename a file. An existing file at the new path is replaced."""
    await files.rename(engine, ref, body.source, body.target, as_user=body.as_user)


@router.get("/watch", response_class=Response, responses={200: {"content": {NDJSON: {}}}})
async def watch(engine: EngineDep, ref: Ref, path: Path, as_user: AsUser, recursive: bool = False) -> Response:
    """Watch a directory: a JSON event a line, until the client disconnects."""
    return ProxyResponse(await files.watch(engine, ref, path, recursive=recursive, as_user=as_user), NDJSON)


@router.get("/tar", response_class=Response, responses={200: {"content": {TAR: {}}}})
async def read_tar(
    engine: EngineDep,
    ref: Ref,
    path: Paths,
    as_user: AsUser,
    xattrs: Annotated[bool, Query(description="keep extended attributes of the user namespace")] = False,
) -> Response:
    """Return files and directories as a tar.

    The guest controls its content: unpack it as untrusted.
    """
    return ProxyResponse(await files.read_tar(engine, ref, path, xattrs=xattrs, as_user=as_user), TAR)


@router.put("/tar", openapi_extra=_TAR_BODY)
async def write_tar(
    engine: EngineDep,
    ref: Ref,
    path: Path,
    request: Request,
    user: User,
    as_user: AsUser,
    keep_owner: bool = False,
    create: Annotated[bool, Query(description="create the directory, atomically with all its content")] = False,
    parents: Parents = False,
) -> TarResult:
    """Unpack the request body, a tar, into a directory."""
    counts = await files.write_tar(
        engine,
        ref,
        path,
        request.stream(),
        user=user,
        keep_owner=keep_owner,
        create=create,
        parents=parents,
        as_user=as_user,
    )
    return TarResult(**counts)
