"""Parse a fake agent's requests, and reject what ``protocol/agent.md`` calls a bad request."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Collection
from typing import Any

MAX_PATH_BYTES = 4095
_HOSTNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,63}")
_VM_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_MACHINE_ID = re.compile(r"[0-9a-f]{32}")
_BOOT_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NO_BYTE = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_MAX_GRACE_MS = 3_600_000

Check = Callable[[Any], bool]


class Refused(Exception):
    """An error answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code = status, code
        super().__init__(message or code)


def bad_request(message: str) -> Refused:
    """The answer to a request that cannot be read."""
    return Refused(400, "bad_request", message)


def parse_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object; an empty body is an empty one."""
    try:
        value = json.loads(body or b"{}")
    except ValueError as error:
        raise bad_request(f"body: {error}") from error
    if not isinstance(value, dict):
        raise bad_request("body: not an object")
    return value


def is_text(value: object) -> bool:
    """Whether a value is a string of any bytes but NUL."""
    return isinstance(value, str) and not _NO_BYTE.search(value)


def is_flag(value: object) -> bool:
    """Whether a value is a boolean."""
    return isinstance(value, bool)


def is_number(low: int, high: int = 1 << 62) -> Check:
    """Return a check for whole numbers in a range."""
    return lambda value: type(value) is int and low <= value <= high


def is_env(value: object) -> bool:
    """Whether a value is an environment."""
    return isinstance(value, dict) and all(
        is_text(name) and is_text(text) and name and "=" not in name for name, text in value.items()
    )


def is_size(value: object) -> bool:
    """Whether a value is the size of a terminal."""
    valid = is_number(1, 65_535)
    return isinstance(value, dict) and valid(value.get("rows")) and valid(value.get("cols"))


def _is_entropy(value: object) -> bool:
    try:
        return 32 <= len(base64.b64decode(value, validate=True)) <= 512  # type: ignore[arg-type]
    except (binascii.Error, TypeError, ValueError):
        return False


SETUP: dict[str, Check] = {
    "hostname": lambda value: isinstance(value, str) and bool(_HOSTNAME.fullmatch(value)),
    "machine_id": lambda value: isinstance(value, str) and bool(_MACHINE_ID.fullmatch(value)),
    "boot_id": lambda value: isinstance(value, str) and bool(_BOOT_ID.fullmatch(value)),
    "time_unix_ms": is_number(-(1 << 62)),
    "entropy": _is_entropy,
    "vm_id": lambda value: isinstance(value, str) and bool(_VM_ID.fullmatch(value)),
    "restored": is_flag,
    "env": is_env,
}
FREEZE: dict[str, Check] = {"sync": is_flag}
EXEC: dict[str, Check] = {
    "argv": lambda value: isinstance(value, list) and all(map(is_text, value)),
    "shell": is_text,
    "login": is_flag,
    "env": is_env,
    "cwd": is_text,
    "user": is_text,
    "sudo": is_flag,
    "stdin": is_flag,
    "timeout_ms": is_number(1),
    "background": is_flag,
    "restore_signal": is_number(1, 64),
    "pty": is_size,
}
POWEROFF: dict[str, Check] = {"grace_ms": is_number(0, _MAX_GRACE_MS)}
SIGNAL: dict[str, Check] = {"signal": is_number(1, 64)}


def check_fields(values: dict[str, Any], fields: dict[str, Check]) -> None:
    """Check those fields that are there. Raises `Refused`."""
    for name, check in fields.items():
        if name in values and not check(values[name]):
            raise bad_request(f"{name}: {values[name]!r}")


def check_exec(spec: dict[str, Any]) -> None:
    """Check a request for a command."""
    check_fields(spec, EXEC)
    if sum((bool(spec.get("argv")), "shell" in spec, bool(spec.get("login")))) != 1:
        raise bad_request("exactly one of argv (not empty), shell and login must be given")


def check_user(users: Collection[str] | None, spec: str) -> None:
    """Check that an account exists. ``None``: every account exists."""
    name, colon, group = spec.partition(":")
    known = {*(users or ()), "root"}
    if users is not None and not ((name in known or is_id(name)) and (not colon or group == "root" or is_id(group))):
        raise Refused(422, "no_such_user", f"{spec!r}: no such user or group")


def is_id(text: str) -> bool:
    """Whether a text is the number of a user or group."""
    return text.isdecimal() and int(text) < (1 << 32) - 1


def check_query(query: str) -> None:
    """Check that a query can be decoded."""
    if _BAD_ESCAPE.search(query):
        raise bad_request("query: invalid escape")


def check_path(path: object, home: str = "/") -> str:
    """Check a path, and return it as an absolute one."""
    if not isinstance(path, str) or not path or "\0" in path:
        raise bad_request(f"{path!r} is not a path")
    if not path.startswith("/"):
        path = f"{home.rstrip('/')}/{path}"
    if len(path.encode("utf-8", "surrogateescape")) > MAX_PATH_BYTES:
        raise bad_request("the path is too long")
    return path
