"""Validation of arguments from the caller."""

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
    nested: bool
    env_vars: dict[str, str]
    cwd: str | None
    user: str | None
    driver: str
    jailer: bool
    cold: bool
    snapshot: str | None


def make_config(
    config: VMConfig | None, options: VMOptions, *, names: Mapping[str, str] = MappingProxyType({})
) -> VMConfig:
    """Merge ``options`` into ``config`` and validate the result.

    Relative paths become absolute, because the engine has another working directory. The default of ``driver`` is
    ``$SQUIB_DRIVER``. ``names`` is as in `describe`.

    Raises `InvalidArgument`.
    """
    values: dict[str, object] = dict(config.model_dump(exclude_unset=True) if config else {})
    values.update(options)
    for name in ("kernel_path", "rootfs_path"):
        if isinstance(path := values.get(name), str | os.PathLike):
            values[name] = os.path.abspath(path)  # noqa: PTH100 (keeps symbolic links)
    if "driver" not in values and (driver := os.environ.get("SQUIB_DRIVER")):
        values["driver"] = driver
    try:
        return VMConfig.model_validate(values)
    except ValidationError as error:
        raise InvalidArgument(describe(error, names)) from None


def describe(error: ValidationError, names: Mapping[str, str] = MappingProxyType({})) -> str:
    """Format a validation error as one line, with each field and its problem.

    ``names`` maps a field to the name that the caller used, such as ``--memory``. Values of environment variables are
    omitted, because they may be secrets.
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
    """Validate a VM's ID or name for use in a URL.

    Raises `InvalidArgument`.
    """
    try:
        return check_name(ref)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None
