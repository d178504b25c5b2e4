"""The HTTP API of an engine, under ``/v1``.

``/v1/openapi.json`` describes it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI, Request, WebSocket
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp

from squib.api.errors import error_response
from squib.api.guards import Guards, refuse
from squib.api.routes import (
    accounts,
    assets,
    engine_info,
    env,
    exec,
    files,
    listeners,
    logs,
    processes,
    pty,
    snapshots,
    templates,
    vms,
)
from squib.api.schema import ErrorBody, ListenRequest
from squib.api.validation import describe_validation
from squib.core.engine import Engine
from squib.errors import InternalError, InvalidArgument, NotFound, SquibError
from squib.version import VERSION

UNIX_SOCKET_HOST = "squib"
"""The Host header that clients of the unix socket send."""

Listening = Callable[[ListenRequest], AbstractAsyncContextManager[tuple[str, str]]]
"""Opens a TCP listener for the duration of a block, which gets its URL and token."""

_ROUTES = (
    engine_info, vms, env, exec, processes, pty, files, accounts, logs, assets, templates, snapshots, listeners,
)  # fmt: skip
_JSON_HINT = "send JSON with the header Content-Type: application/json"
_CLIENT_GONE = 499  # nginx uses this number; HTTP has no status for it


def create_app(
    engine: Engine,
    *,
    allowed_hosts: Collection[str] = (UNIX_SOCKET_HOST,),
    token: str | None = None,
    listening: Listening | None = None,
) -> ASGIApp:
    """Return the engine's API as an ASGI app.

    With ``token``, requests need ``Authorization: Bearer <token>``. ``listening`` opens a TCP listener for a client.
    """
    api = FastAPI(
        title="squib",
        version=VERSION,
        description="Create Linux microVMs, run commands in them, copy files, stop and delete them.",
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={"default": {"model": ErrorBody, "description": "an error: what failed and what to do"}},
    )
    api.state.engine = engine
    api.state.listening = listening
    for routes in _ROUTES:
        api.include_router(routes.router, prefix="/v1")
    api.add_exception_handler(SquibError, _on_squib_error)
    api.add_exception_handler(RequestValidationError, _on_invalid_request)
    api.add_exception_handler(WebSocketRequestValidationError, _on_invalid_handshake)  # type: ignore[arg-type]
    api.add_exception_handler(HTTPException, _on_http_error)
    api.add_exception_handler(ClientDisconnect, _on_client_gone)
    api.add_exception_handler(Exception, _on_fault)
    return Guards(api, engine, allowed_hosts=allowed_hosts, token=token)


async def _on_squib_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, SquibError)
    return error_response(error)


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    no_json = "json" not in request.headers.get("content-type", "")
    hint = _JSON_HINT if no_json and any(problem["loc"][:1] == ("body",) for problem in problems) else ""
    return error_response(InvalidArgument(describe_validation(problems), hint=hint))


async def _on_invalid_handshake(socket: WebSocket, error: WebSocketRequestValidationError) -> None:
    problem = InvalidArgument(describe_validation(error.errors()))
    await refuse(problem, socket.scope, socket.receive, socket.send)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, SquibError):  # raised while the body was being read
        return error_response(error.__cause__)
    if error.status_code in (404, 405):
        return error_response(
            NotFound(f"no such route: {request.method} {request.url.path}", hint="see /v1/openapi.json")
        )
    return error_response(InvalidArgument(str(error.detail)))


async def _on_client_gone(request: Request, error: Exception) -> Response:
    """Nobody reads this response.

    A client that disconnects is not a fault to log.
    """
    return Response(status_code=_CLIENT_GONE)


async def _on_fault(request: Request, error: Exception) -> Response:
    """Report a bug of squib.

    The server logs the traceback; the client learns where to look.
    """
    fault = InternalError(f"internal error: {type(error).__name__}", hint="squib logs --engine shows the traceback")
    return error_response(fault)
