"""The base classes of all models, and checks of names and environments."""

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
    """A frozen value that a caller sends; unknown fields are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ResponseModel(BaseModel):
    """A frozen value that a caller receives; unknown fields are ignored.

    A client can therefore read the answers of a newer engine.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")


class StoredModel(BaseModel):
    """A frozen value in the state directory; unknown fields are ignored.

    An older squib can therefore read what a newer one wrote.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")


def known_fields(model: type[BaseModel]) -> BeforeValidator:
    """Return a validator that drops fields which ``model`` does not have.

    It lets a `ResponseModel` contain a `RequestModel`, which would otherwise reject fields of a newer engine.
    """

    def drop(value: Any) -> Any:
        return {key: value[key] for key in value if key in model.model_fields} if isinstance(value, dict) else value

    return BeforeValidator(drop)


def known_values(enum: type[E], fallback: E) -> BeforeValidator:
    """Return a validator that replaces unknown values with ``fallback``.

    A value is unknown if ``enum`` does not have it.
    """
    known = {member.value for member in enum}
    return BeforeValidator(lambda value: fallback if isinstance(value, str) and value not in known else value)


def check_name(value: str) -> str:
    """Check that a name or ID matches `NAME_PATTERN`.

    It has 1 to 63 letters, digits, ``_``, ``.`` or ``-``, and starts with a letter or digit.
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
    """Check the names, values and size of environment variables.

    Names are C identifiers, and values have no NUL. A variable may take 128 KiB, and all of them together 1 MiB.
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
