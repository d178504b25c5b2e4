"""The HTTP API of an engine, under ``/v1``; its OpenAPI description is at ``/v1/openapi.json``."""

from __future__ import annotations

from collections.abc import Collection

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp

from squib.api.guards import Guards, error_response
from squib.api.routes import assets, engine_info, exec, logs, vms
from squib.api.schema import ErrorBody
from squib.core.engine import Engine
from squib.errors import InternalError, InvalidArgument, NotFound, SquibError
from squib.version import VERSION

UNIX_SOCKET_HOST = "squib"
"""The Host that clients of the unix socket send."""

_CLIENT_GONE = 499  # as nginx has it; there is no status for this


def create_app(
    engine: Engine, *, allowed_hosts: Collection[str] = (UNIX_SOCKET_HOST,), token: str | None = None
) -> ASGIApp:
    """The engine's API as an ASGI app. With ``token``, requests need ``Authorization: Bearer <token>``."""
    api = FastAPI(
        title="squib",
        version=VERSION,
        description="Linux microVMs: create, exec, stop, delete.",
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        responses={"default": {"model": ErrorBody, "description": "what failed, and what to do"}},
    )
    api.state.engine = engine
    for routes in (engine_info, vms, exec, logs, assets):
        api.include_router(routes.router, prefix="/v1")
    api.add_exception_handler(SquibError, _on_squib_error)
    api.add_exception_handler(RequestValidationError, _on_invalid_request)
    api.add_exception_handler(HTTPException, _on_http_error)
    api.add_exception_handler(ClientDisconnect, _on_client_gone)
    api.add_exception_handler(Exception, _on_fault)
    return Guards(api, engine, allowed_hosts=allowed_hosts, token=token)


async def _on_squib_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, SquibError)
    return error_response(error)


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(InvalidArgument(describe_validation(error.errors())))


def describe_validation(problems: Collection[dict[str, object]]) -> str:
    """Validation errors as one line: the field, what is wrong with it, and its value where that is short."""
    return "; ".join(map(_describe_problem, problems))


def _describe_problem(problem: dict[str, object]) -> str:
    loc = problem.get("loc", ())
    parts = [str(part) for part in loc if part not in ("body", "path", "query")] if isinstance(loc, tuple) else []
    message = str(problem.get("msg", "")).removeprefix("Value error, ")
    value = problem.get("input")
    shown = f" (got {value!r})" if isinstance(value, str | int | float) and len(str(value)) <= 80 else ""
    name = ".".join(parts)
    return f"{name}: {message}{'' if shown[6:-1] in message else shown}" if name else f"{message}"


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code in (404, 405):
        return error_response(
            NotFound(f"no such route: {request.method} {request.url.path}", hint="see /v1/openapi.json")
        )
    return error_response(InvalidArgument(str(error.detail)))


async def _on_client_gone(request: Request, error: Exception) -> Response:
    """Nobody reads this answer; it is no fault to log."""
    return Response(status_code=_CLIENT_GONE)


async def _on_fault(request: Request, error: Exception) -> Response:
    """A fault of ours. The server logs the traceback; the client learns where to look."""
    fault = InternalError(f"a fault in squib: {type(error).__name__}", hint="squib logs --engine shows the traceback")
    return error_response(fault)
