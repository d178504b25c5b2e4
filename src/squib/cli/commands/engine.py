"""``squib engine``: the process that owns a state directory and its VMs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from squib.cli.app import command, make_group
from squib.cli.args import options
from squib.cli.exit_codes import FAILED
from squib.cli.render import Output
from squib.errors import EngineUnavailable, InvalidArgument, WrongState

if TYPE_CHECKING:
    from squib.paths import Home
    from squib.sdk.client import EngineClient
    from squib.sdk.local import EngineProcess

engine = make_group("engine", "Show or stop the engine, the process that owns the VMs.")

_FORCE_HINT = "squib engine stop --force   (VMs continue; the next command starts an engine that adopts them)"


@command("status", group=engine, examples=["squib engine status", "squib engine status --json | jq .pid"])
async def status(output: Output) -> int:
    """Show the engine's process, state directory, log and VMs.

    The exit status is 0 if the engine responds, and 1 if it does not or if no engine runs. This does not start an
    engine.
    """
    async with options.connect() as client:
        facts = await _facts(client)
    if output.json:
        output.data(facts)
    elif facts["status"] == "not_running":
        output.line(f"no engine runs in {facts['home']}; the next command that needs one starts it")
    else:
        for name, value in facts.items():
            if value is not None:
                output.line(f"{name.replace('_', ' ') + ':':<14}{value}")
    return 0 if facts["status"] == "running" else FAILED


@command("stop", group=engine, examples=["squib engine stop", "squib engine stop --force"])
async def stop(
    output: Output,
    force: Annotated[
        bool,
        typer.Option("--force", "-f", help="Stop the engine although VMs run, or although it does not respond."),
    ] = False,
) -> None:
    """Stop the engine of the local state directory.

    VMs that run continue; the next command starts an engine, which adopts them. Without --force, the engine is not
    stopped while VMs run. Nothing happens if no engine runs.
    """
    from squib.sdk.local import find_engine, stop_engine

    async with options.connect() as client:
        home = client.home
        if home is None:
            raise InvalidArgument(
                f"the engine at {client.url} is not local", hint="unset SQUIB_URL to stop the engine of SQUIB_HOME"
            )
        found = find_engine(home)
        if found is None:
            output.note(f"no engine runs in {home.root}")
            pid = None
        else:
            if not force:
                await _check_no_vm_runs(client, home, found)
            pid = await stop_engine(home)
    if output.json:
        output.data({"home": str(home.root), "stopped": pid})
    elif pid is not None:
        output.line(f"stopped the engine {pid}")


async def _facts(client: EngineClient) -> dict[str, object]:
    """Return what is known of the engine, as ``--json`` prints it.

    A value that is not known is ``None``.
    """
    from squib.sdk.local import describe_silence, engine_answers, find_engine
    from squib.version import VERSION

    home = client.home
    facts: dict[str, object] = {
        "status": "running",
        "pid": None,
        "version": None,
        "home": None if home is None else str(home.root),
        "socket": None if home is None else str(home.engine_socket),
        "url": client.url,
        "started_at": None,
        "running_vms": None,
        "vms": None,
        "log": None if home is None else str(home.engine_log),
        "client_version": VERSION,
        "problem": None,
        "hint": None,
    }
    if home is not None:
        found = find_engine(home)
        if found is None and not engine_answers(home):
            return facts | {"status": "not_running"}
        if found is not None:
            facts |= {"pid": found.pid, "started_at": found.started_at.isoformat(timespec="seconds")}
        if not _may_answer(home, found):
            problem, hint = describe_silence(home)
            return facts | {"status": "not_responding", "problem": problem, "hint": hint}
    try:
        info = await client.info()
    except EngineUnavailable as error:
        if home is None:
            raise
        return facts | {"status": "not_responding", "problem": error.message, "hint": error.hint}
    return facts | {
        "pid": info.pid,
        "version": info.version,
        "home": info.home,
        "started_at": info.started_at.isoformat(timespec="seconds"),
        "running_vms": info.running_count,
        "vms": info.vm_count,
    }


async def _check_no_vm_runs(client: EngineClient, home: Home, found: EngineProcess) -> None:
    """Check that no VM runs.

    Raises `WrongState` if one runs, and `EngineUnavailable` if the engine does not answer.
    """
    from squib.sdk.local import describe_silence

    if not _may_answer(home, found):
        raise EngineUnavailable(
            f"the engine {home.root} does not respond: {describe_silence(home)[0]}", hint=_FORCE_HINT
        )
    try:
        running = [vm.name for vm in await client.vms() if vm.pid is not None]
    except EngineUnavailable as error:
        raise EngineUnavailable(error.message, hint=_FORCE_HINT) from error
    if running:
        raise WrongState(f"the engine is not stopped while VMs run: {', '.join(running)}", hint=_FORCE_HINT)


def _may_answer(home: Home, found: EngineProcess | None) -> bool:
    """Return whether an engine runs that can answer a request.

    Without one, a request would start an engine, or wait for one that is stopped.
    """
    from squib.sdk.local import engine_answers

    return engine_answers(home) and not (found and found.is_stopped)
