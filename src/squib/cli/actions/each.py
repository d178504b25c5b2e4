"""Act on several VMs, one after the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from squib.cli.args import options
from squib.cli.progress import waiting
from squib.cli.render import Output
from squib.errors import EngineError, SquibError
from squib.models import VMInfo
from squib.sdk.client import EngineClient
from squib.sdk.config import check_ref

T = TypeVar("T")


async def for_each(
    output: Output, refs: Sequence[str], act: Callable[[EngineClient, str], Awaitable[T]]
) -> tuple[list[T], int]:
    """Call ``act`` for each VM; return the results and the exit status.

    An error is printed, the remaining VMs are still processed, and the status is 1. An invalid name is raised before
    anything is done; an `EngineError` is raised at once.
    """
    for ref in refs:
        check_ref(ref)
    results: list[T] = []
    status = 0
    async with options.connect() as engine:
        for ref in refs:
            try:
                results.append(await act(engine, ref))
            except EngineError:
                raise
            except SquibError as error:
                output.error(error)
                status = 1
    return results, status


async def change_each(
    output: Output, refs: Sequence[str], doing: str, change: Callable[[EngineClient, str], Awaitable[VMInfo]]
) -> int:
    """Change the state of each VM, print its name, and return the exit status.

    With --json, prints all changed VMs at the end. ``doing`` describes the change while it is in progress:
    ``starting``.
    """

    async def act(engine: EngineClient, ref: str) -> VMInfo:
        async with waiting(output, f"{doing} VM {ref}"):
            vm = await change(engine, ref)
        if not output.json:
            output.line(ref)
        return vm

    changed, status = await for_each(output, refs, act)
    if output.json:
        output.data(changed)
    return status
