"""``squib doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from squib.cli import options
from squib.cli.app import command
from squib.cli.render import Column, Output
from squib.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from squib.models import Check
    from squib.sdk.client import EngineClient

_COLUMNS = (Column("RESULT"), Column("CHECK"), Column("FOUND"))
_ANSWER_TIMEOUT_S = 60.0


@command("doctor", examples=["squib doctor", "squib doctor --fix", "squib doctor --json | jq '.checks[].status'"])
async def doctor(
    output: Output,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix", help="Install what is missing (apt-get, with sudo if need be), and build kernel and image."
        ),
    ] = False,
) -> int:
    """Check this host and what squib keeps on it.

    Each check that does not pass says what to type. The status is 1 if one has failed; warnings do not count.
    """
    from squib.models import CheckStatus

    async with options.connect() as engine:
        if fix and engine.home is None:
            raise InvalidArgument("--fix mends this host, and SQUIB_URL names another", hint="run it there")
        checks = await _examine(engine)
        if fix and await _mend(output, engine, checks):
            checks = await _examine(engine)
    failed = any(check.status is CheckStatus.FAIL for check in checks)
    if output.json:
        output.data({"ok": not failed, "checks": [check.model_dump(mode="json") for check in checks]})
    else:
        output.table(_COLUMNS, [[check.status.value, check.name, check.detail] for check in checks])
        _show_fixes(output, checks)
    return int(failed)


async def _examine(engine: EngineClient) -> list[Check]:
    """What the engine finds. If none can be started, what can be seen without one, and why."""
    import asyncio

    from squib.errors import SquibError
    from squib.models import Check, CheckStatus

    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            return [await _check_engine(engine), *await engine.doctor()]
    except TimeoutError:
        reason, fix = f"does not answer within {_ANSWER_TIMEOUT_S:g} s", "squib logs --engine"
    except SquibError as error:
        reason, fix = str(error), ""
    if engine.home is None:
        return [Check(name="engine", status=CheckStatus.FAIL, detail=reason, fix=fix)]
    from squib.core.doctor import check_host

    return [Check(name="engine", status=CheckStatus.FAIL, detail=reason, fix=fix), *await check_host(engine.home)]


async def _check_engine(engine: EngineClient) -> Check:
    from squib.models import Check, CheckStatus
    from squib.version import VERSION

    info = await engine.info()
    detail = f"{info.version}, pid {info.pid}, {info.running_count} of {info.vm_count} VMs running"
    if info.version != VERSION:
        detail += f"; this client is {VERSION}"
        return Check(name="engine", status=CheckStatus.WARN, detail=detail, fix=f"kill {info.pid}")
    return Check(name="engine", status=CheckStatus.OK, detail=detail)


def _show_fixes(output: Output, checks: Sequence[Check]) -> None:
    fixes = [(check.name, check.fix) for check in checks if check.fix]
    if fixes:
        output.line("\nWhat to type:")
        for name, fix in fixes:
            output.line(f"  {fix}    # {name}")
        output.line("or: squib doctor --fix, for what it can do by itself")


async def _mend(output: Output, engine: EngineClient, checks: Sequence[Check]) -> bool:
    """Do what can be done by itself; whether that was anything. Raises `ToolFailed` and what building raises."""
    import asyncio

    from squib.cli.fixes import BuildImage, BuildKernel, Run, plan
    from squib.cli.progress import steps
    from squib.errors import ToolFailed
    from squib.host import proc

    plans = plan([check.fix for check in checks if check.fix])
    for step in plans:
        match step:
            case Run(argv):
                output.note(" ".join(argv))
                if status := await asyncio.to_thread(proc.call, argv):
                    raise ToolFailed(f"{' '.join(argv)} ended with status {status}")
            case BuildKernel(rebuild):
                with steps(output, "kernel") as report:
                    await engine.build_kernel(rebuild=rebuild, on_progress=report)
            case BuildImage(name, rebuild):
                with steps(output, f"image {name}") as report:
                    await engine.build_image(name, rebuild=rebuild, on_progress=report)
    return bool(plans)
