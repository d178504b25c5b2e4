"""The base classes of all models, and checks of names and environments.

The base classes set how strict models are: requests are strict, responses and stored values are lenient.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}"
_NAME = re.compile(NAME_PATTERN)
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MAX_PATH_BYTES = 4096
"""Linux's limit for a path in a system call."""
_MAX_VARIABLE_BYTES = 128 * 1024 - 2
_MAX_ENV_BYTES = 1024 * 1024
"""Linux's limit for one variable, and half of its limit for all of them, so that there is room for arguments."""

E = TypeVar("E", bound=StrEnum)


class RequestModel(BaseModel):
    """A value that a caller sends: frozen, and unknown fields are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ResponseModel(BaseModel):
    """A value that a caller receives: frozen, and unknown fields are ignored.

    A client can therefore read the answers of a newer engine.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")


class StoredModel(BaseModel):
    """A value in a file of the state directory: frozen and lenient.

    Unknown fields, which a newer squib may have written, are ignored.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")


def known_fields(model: type[BaseModel]) -> BeforeValidator:
    """Drop unknown fields of a `RequestModel` inside a `ResponseModel`."""

    def drop(value: Any) -> Any:
        return {key: value[key] for key in value if key in model.model_fields} if isinstance(value, dict) else value

    return BeforeValidator(drop)


def known_values(enum: type[E], fallback: E) -> BeforeValidator:
    """Read a value that this version does not know as ``fallback``."""
    known = {member.value for member in enum}
    return BeforeValidator(lambda value: fallback if isinstance(value, str) and value not in known else value)


def check_name(value: str) -> str:
    """Check a name or ID.

    It must have 1 to 63 letters, digits, ``_``, ``.`` or ``-``, and start with a letter or digit.
    """
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"invalid name {shorten(value)!r}: use 1-63 letters, digits, '_', '.' or '-', "
            "starting with a letter or digit"
        )
    return value


def check_env_name(name: str) -> str:
    """Check the name of an environment variable: a C identifier."""
    if not _ENV_NAME.fullmatch(name):
        raise ValueError(
            f"invalid environment variable {shorten(name)!r}: use letters, digits and '_', not starting with a digit"
        )
    return name


def check_env(value: dict[str, str]) -> dict[str, str]:
    """Check environment variables.

    Names must be C identifiers, values must have no NUL, and all must be within Linux's size limits.
    """
    total = 0
    for name, text in value.items():
        check_env_name(name)
        if "\0" in text:
            raise ValueError(f"the value of {name} contains a NUL byte")
        size = len(name) + len(text.encode(errors="surrogateescape"))
        if size > _MAX_VARIABLE_BYTES:
            raise ValueError(f"variable {name} has {size} bytes; the limit is {_MAX_VARIABLE_BYTES}")
        total += size
    if total > _MAX_ENV_BYTES:
        raise ValueError(f"the variables have {total} bytes in total; the limit is {_MAX_ENV_BYTES}")
    return value


def check_no_nul(value: str) -> str:
    """Check that a string can be passed to a system call."""
    if "\0" in value:
        raise ValueError("contains a NUL byte")
    return value


def shorten(text: str, most: int = 80) -> str:
    """Cut a text for an error message."""
    return text if len(text) <= most else text[: most - 3] + "..."


Name = Annotated[str, AfterValidator(check_name)]
Env = Annotated[dict[str, str], AfterValidator(check_env)]
EnvName = Annotated[str, AfterValidator(check_env_name)]
GuestString = Annotated[str, AfterValidator(check_no_nul)]
