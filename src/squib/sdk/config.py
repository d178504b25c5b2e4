"""Turning what a caller typed into checked values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypedDict

from pydantic import ValidationError

from squib.errors import InvalidArgument
from squib.models import VMConfig, check_name


class VMOptions(TypedDict, total=False):
    """The fields of `VMConfig`, as keyword arguments."""

    vm_id: str | None
    name: str | None
    project: str | None
    runtime: str
    vcpu_count: int
    mem_size_mib: int | None
    disk_size_mib: int
    kernel_path: str | os.PathLike[str] | None
    rootfs_path: str | os.PathLike[str] | None
    boot_args: str
    env_vars: dict[str, str]


def make_config(
    config: VMConfig | None, options: VMOptions, *, names: Mapping[str, str] = MappingProxyType({})
) -> VMConfig:
    """``config`` with ``options`` laid over it. Raises `InvalidArgument`; for ``names`` see `describe`.

    Relative paths are made absolute: the engine has another working directory.
    """
    values: dict[str, object] = dict(config.model_dump(exclude_unset=True) if config else {})
    values.update(options)
    for name in ("kernel_path", "rootfs_path"):
        if isinstance(path := values.get(name), str | os.PathLike):
            values[name] = os.path.abspath(path)  # noqa: PTH100 (a path may be bytes-like; symbolic links stay)
    try:
        return VMConfig.model_validate(values)
    except ValidationError as error:
        raise InvalidArgument(describe(error, names)) from None


def describe(error: ValidationError, names: Mapping[str, str] = MappingProxyType({})) -> str:
    """A validation error as one line: each field and what is wrong with it. Values of environment variables are not
    shown. ``names`` are what the caller typed for a field, such as ``--memory``.
    """
    problems = []
    for problem in error.errors(include_url=False, include_context=False):
        field = ".".join(names.get(str(part), str(part)) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        value = problem["input"]
        if (
            isinstance(value, str | int | float)
            and repr(value) not in message
            and problem["loc"][:1] not in (("env",), ("env_vars",))
        ):
            message += f" (got {value if len(str(value)) <= 80 else str(value)[:77] + '...'!r})"
        problems.append(f"{field}: {message}" if field else message)
    return "; ".join(problems)


def check_ref(ref: str) -> str:
    """An ID or name of a VM, safe in a URL. Raises `InvalidArgument`."""
    try:
        return check_name(ref)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None
