"""``squib version``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Output

if TYPE_CHECKING:
    from squib.models import EngineInfo


@command("version", examples=["squib version", "squib version --json"])
async def version(output: Output) -> None:
    """Show the versions of squib and of the running engine.

    This does not start an engine.
    """
    from squib.version import VERSION

    engine = await _running_engine()
    if output.json:
        output.data({"version": VERSION, "engine": engine.model_dump(mode="json") if engine else None})
        return
    output.line(f"squib {VERSION}")
    if engine:
        output.line(
            f"engine {engine.version}, pid {engine.pid}, {engine.driver} with {engine.accelerator}, "
            f"{engine.running_count} of {engine.vm_count} VMs running, {engine.home}"
        )
    else:
        output.line("no engine is running; the next command that needs one starts it")


async def _running_engine() -> EngineInfo | None:
    from squib.sdk.local import engine_answers

    async with options.connect() as client:
        return None if client.home and not engine_answers(client.home) else await client.info()
