"""Errors as JSON, from which a client raises the engine's error again.

The JSON holds the error's code, which selects the class.
"""

from __future__ import annotations

from squib.errors import InternalError, SquibError


def _with_subclasses(cls: type[SquibError]) -> list[type[SquibError]]:
    return [cls] + [found for sub in cls.__subclasses__() for found in _with_subclasses(sub)]


BY_CODE: dict[str, type[SquibError]] = {cls.code: cls for cls in _with_subclasses(SquibError) if cls.code}

ERROR_CODE_HEADER = "squib-error-code"
"""The header of an HTTP response with an error's code, if the body has another one for older clients."""


def to_wire(error: SquibError) -> dict[str, str]:
    """Return the JSON form of an error.

    The fields are ``code``, ``message``, ``hint`` and, if not empty, ``detail``.
    """
    wire = {"code": error.code or InternalError.code, "message": error.message, "hint": error.hint}
    return wire | {"detail": error.detail} if error.detail else wire


def from_wire(wire: object) -> SquibError:
    """Return the error that an engine reported.

    An unknown code, or a value that is not an error's JSON form, gives an `InternalError`.
    """
    fields = wire if isinstance(wire, dict) else {}
    code, message, hint, detail = (
        value if isinstance(value := fields.get(name), str) else "" for name in ("code", "message", "hint", "detail")
    )
    return BY_CODE.get(code, InternalError)(message or "unknown error", hint=hint, detail=detail)
