"""Doing the same with several VMs, one after the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from squib.cli import options
from squib.cli.render import Output
from squib.errors import EngineError, SquibError
from squib.sdk.client import EngineClient
from squib.sdk.config import check_ref

T = TypeVar("T")


async def for_each(
    output: Output, refs: Sequence[str], act: Callable[[EngineClient, str], Awaitable[T]]
) -> tuple[list[T], int]:
    """Call ``act`` for each VM; what it returned, and the exit status.

    An error is reported and the others still have their turn; the status is then 1. A name that is none is refused
    before anything is done, and without an engine nothing is tried twice: both are raised.
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
