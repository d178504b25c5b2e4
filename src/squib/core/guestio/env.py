"""``env``: the environment that every command of a VM starts with. It is part of the VM's configuration."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pydantic import ValidationError

from squib.core.engine import Engine
from squib.errors import InvalidArgument
from squib.models import VMConfig


def get_env(engine: Engine, ref: str) -> dict[str, str]:
    """The VM-wide environment, with its values. Raises `NotFound`."""
    return engine.store.get_vm(ref).config.env_vars


async def change_env(engine: Engine, ref: str, *, set: Mapping[str, str], unset: Collection[str]) -> dict[str, str]:
    """Set and unset variables; returns the environment that later commands of the VM start with, in whatever state it
    is now.

    Unsetting what is not set changes nothing. Raises `InvalidArgument` if a variable is in both, or all of them are
    more than a command can be started with; `NotFound`.
    """
    if both := sorted(set.keys() & unset):
        raise InvalidArgument(f"{both[0]!r} is both in set and in unset", hint="give it in one of them")
    vm_id = engine.store.get_vm(ref).vm_id
    async with engine.lock(vm_id):
        config = engine.store.get_vm(vm_id).config
        env = {name: value for name, value in (config.env_vars | dict(set)).items() if name not in unset}
        try:
            changed = VMConfig.model_validate(config.model_dump() | {"env_vars": env})
        except ValidationError as error:
            raise InvalidArgument(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        engine.store.set_config(vm_id, changed)
        return env


async def hand_over_env(engine: Engine, ref: str) -> None:
    """Before a command starts: tell the guest the environment if it has changed since the guest was told.

    That way a change needs no guest that answers: it may be paused, or be running under an engine that has just been
    started and does not know what the guest was told. Raises `AgentError`, `NotFound`.
    """
    record = engine.store.get_vm(ref)
    vm = engine.vm_of(record)
    env = record.config.env_vars
    if vm.known_env != env:
        await vm.agent.set_env(env)
        vm.known_env = env
