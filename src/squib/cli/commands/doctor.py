"""``squib doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from squib.cli.app import command
from squib.cli.args import options
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
            "--fix", help="Install missing packages (apt-get, with sudo if needed), and build the kernel and the image."
        ),
    ] = False,
) -> int:
    """Check this host, and what squib stores on it.

    If a check does not pass, the command that repairs it is shown, if there is one. The exit status is 1 if a
    check failed; warnings do not count.
    """
    from squib.models import CheckStatus

    async with options.connect() as engine:
        if fix and engine.home is None:
            raise InvalidArgument(
                "--fix repairs this host, but SQUIB_URL points to a remote engine", hint="run it on the engine's host"
            )
        checks = await _examine(engine)
        if fix and await _repair(output, engine, checks):
            checks = await _examine(engine)
    failed = any(check.status is CheckStatus.FAIL for check in checks)
    if output.json:
        output.data({"ok": not failed, "checks": [check.model_dump(mode="json") for check in checks]})
    else:
        output.table(_COLUMNS, [[check.status.value, check.name, check.detail] for check in checks])
        _show_fixes(output, checks)
    return int(failed)


async def _examine(engine: EngineClient) -> list[Check]:
    """Return the engine's checks.

    If no engine starts, return the reason and the checks that need no engine.
    """
    import asyncio

    from squib.errors import SquibError
    from squib.models import Check, CheckStatus, Fix

    fix = None
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            return [await _check_engine(engine), *await engine.doctor()]
    except TimeoutError:
        reason, fix = f"no answer within {_ANSWER_TIMEOUT_S:g} s", Fix(argv=("squib", "logs", "--engine"))
    except SquibError as error:
        reason = "; ".join(filter(None, (error.message, error.detail, error.hint)))
    if engine.home is None:
        return [Check(name="engine", status=CheckStatus.FAIL, detail=reason, fix=fix)]
    from squib.core.doctor import check_host

    return [Check(name="engine", status=CheckStatus.FAIL, detail=reason, fix=fix), *await check_host(engine.home)]


async def _check_engine(engine: EngineClient) -> Check:
    from squib.models import Check, CheckStatus, Fix
    from squib.version import VERSION

    info = await engine.info()
    detail = f"{info.version}, pid {info.pid}, {info.running_count} of {info.vm_count} VMs running"
    if info.version != VERSION:
        detail += f"; this client is {VERSION}"
        restart = Fix(argv=("squib", "engine", "stop", "--force"))
        return Check(name="engine", status=CheckStatus.WARN, detail=detail, fix=restart)
    return Check(name="engine", status=CheckStatus.OK, detail=detail)


def _show_fixes(output: Output, checks: Sequence[Check]) -> None:
    fixes = [(check.name, check.fix) for check in checks if check.fix]
    if fixes:
        output.line("\nTo fix:")
        for name, fix in fixes:
            output.line(f"  {fix}    # {name}")
        output.line("squib doctor --fix installs packages and builds the kernel and images")


async def _repair(output: Output, engine: EngineClient, checks: Sequence[Check]) -> bool:
    """Install packages and build assets; return if there was anything to do.

    Raises `ToolFailed`.
    """
    import asyncio
    import shlex

    from squib.cli.actions.fixes import BuildImage, BuildKernel, Run, plan
    from squib.cli.progress import steps
    from squib.errors import ToolFailed
    from squib.host import proc

    plans = plan([check.fix for check in checks if check.fix])
    for step in plans:
        match step:
            case Run(argv):
                output.note(shlex.join(argv))
                if status := await asyncio.to_thread(proc.call, argv):
                    raise ToolFailed(f"{shlex.join(argv)} failed with status {status}")
            case BuildKernel(rebuild):
                with steps(output, "kernel") as report:
                    await engine.build_kernel(rebuild=rebuild, on_progress=report)
            case BuildImage(name, rebuild):
                with steps(output, f"image {name}") as report:
                    await engine.build_image(name, rebuild=rebuild, on_progress=report)
    return bool(plans)
