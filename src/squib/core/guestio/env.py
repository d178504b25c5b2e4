"""``env``: the environment that every command of a VM starts with. It is part of the VM's configuration."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from squib.core.engine import Engine
from squib.core.lifecycle.verbs import Turn
from squib.errors import InvalidArgument
from squib.models import check_env


def get_env(engine: Engine, ref: str) -> dict[str, str]:
    """The VM-wide environment, with its values. Raises `NotFound`."""
    return engine.store.get_vm(ref).spec.env_vars


async def change_env(engine: Engine, ref: str, *, set: Mapping[str, str], unset: Collection[str]) -> dict[str, str]:
    """Set and unset variables; returns the environment that later commands of the VM start with, in whatever state it
    is now.

    Unsetting what is not set changes nothing. Raises `InvalidArgument` if a variable is in both, or all of them are
    more than a command can be started with; `NotFound`.
    """
    if both := sorted(set.keys() & unset):
        raise InvalidArgument(f"{both[0]!r} is both in set and in unset", hint="give it in one of them")
    vm_id = engine.store.get_vm(ref).vm_id

    async def change(turn: Turn) -> dict[str, str]:
        spec = engine.store.get_vm(vm_id).spec
        env = {name: value for name, value in (spec.env_vars | dict(set)).items() if name not in unset}
        try:
            check_env(env)
        except ValueError as error:
            raise InvalidArgument(str(error)) from None
        engine.store.set_spec(vm_id, spec.model_copy(update={"env_vars": env}))
        return env

    return await engine.verbs.run(vm_id, "change of the environment", change)


async def sync_env(engine: Engine, ref: str) -> None:
    """Before a command starts: tell the guest the environment if it has changed since the guest was told.

    That way a change needs no guest that answers: it may be paused, or be running under an engine that has just been
    started and does not know what the guest was told. Raises `AgentError`, `NotFound`.
    """
    record = engine.store.get_vm(ref)
    vm = engine.vm_of(record)
    env = record.spec.env_vars
    if vm.known_env != env:
        await vm.agent.set_env(env)
        vm.known_env = env
