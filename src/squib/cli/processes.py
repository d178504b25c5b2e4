"""The commands that a VM knows."""

from __future__ import annotations

from squib.errors import NoSuchProcess, NoTerminal
from squib.models import ProcessInfo
from squib.sdk.client import EngineClient
from squib.sdk.config import check_ref


async def list_processes(engine: EngineClient, ref: str) -> list[ProcessInfo]:
    """The commands of a VM that run or are kept, oldest first. Raises `NotFound`, `WrongState`."""
    answer = await engine.request("GET", f"/vms/{check_ref(ref)}/processes")
    return [ProcessInfo.model_validate(process) for process in answer["processes"]]


async def find_process(engine: EngineClient, ref: str, process_id: str) -> ProcessInfo:
    """One command. Raises `NoSuchProcess`, with what shows those that there are."""
    try:
        answer = await engine.request("GET", f"/vms/{check_ref(ref)}/processes/{check_ref(process_id)}")
    except NoSuchProcess as error:
        raise NoSuchProcess(error.message, hint=f"squib ps {ref} shows all", detail=error.detail) from None
    return ProcessInfo.model_validate(answer)


def newest_detached(ref: str, processes: list[ProcessInfo]) -> ProcessInfo:
    """Of the terminals that run, the newest that nobody looks at. Raises `NoTerminal`, which says which there are."""
    terminals = [process for process in processes if process.pty and process.running]
    detached = [process for process in terminals if not process.readers]
    if detached:
        return detached[-1]
    if terminals:
        names = ", ".join(f"{process.id} ({process.argv[0]})" for process in terminals)
        raise NoTerminal(
            f"no terminal of VM {ref} is detached; in use: {names}",
            hint=f"squib attach {ref} {terminals[-1].id} joins one all the same",
        )
    raise NoTerminal(
        f"VM {ref} has no terminal", hint=f"squib connect {ref} opens one; squib ps {ref} shows all commands"
    )
