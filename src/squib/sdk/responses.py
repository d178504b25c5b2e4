"""Reading an engine's responses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from squib.errors import EngineUnavailable, SquibError
from squib.models import ResponseModel
from squib.protocol.errors import BY_CODE, ERROR_CODE_HEADER, from_wire

M = TypeVar("M", bound=ResponseModel)


def read_value(model: type[M], answer: object) -> M:
    """Parse a value in a response.

    Raises `EngineUnavailable` if it is invalid.
    """
    try:
        return model.model_validate(answer)
    except ValidationError as error:
        raise not_understood(model.__name__) from error


def read_list(model: type[M], answer: object, name: str) -> list[M]:
    """Parse the list under the key ``name``.

    Raises the errors of `read_value`.
    """
    values = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(values, list):
        raise not_understood(name)
    return [read_value(model, value) for value in values]


def not_understood(what: str) -> EngineUnavailable:
    """Return the error for a response that this client cannot read.

    The engine has another version, or the server is not an engine.
    """
    return EngineUnavailable(
        f"invalid response ({what}): the engine has another version, or the server is not a squib engine",
        hint="squib version shows both versions; check SQUIB_URL",
    )


def read_event(line: str) -> dict[str, Any]:
    """Parse a line of a progress stream. Raises the errors of `read_value`."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        raise not_understood("progress event")
    return event


def error_of(status: int, body: bytes, headers: Mapping[str, str]) -> SquibError:
    """Return the error of a response, `EngineUnavailable` if it names none."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict) and isinstance(error := answer.get("error"), dict):
        code = headers.get(ERROR_CODE_HEADER)
        return from_wire(error | {"code": code} if code in BY_CODE else error)
    return EngineUnavailable(f"not a squib engine: the server returned status {status}", hint="check SQUIB_URL")
