"""``env``: the VM-wide environment, which every command starts with.

It is stored with the VM.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from squib.core.engine import Engine
from squib.core.lifecycle.verbs import Turn
from squib.errors import InvalidArgument
from squib.models import check_env


def get_env(engine: Engine, ref: str) -> dict[str, str]:
    """Return the VM-wide environment with its values. Raises `NotFound`."""
    return engine.store.get_vm(ref).spec.env_vars


async def change_env(engine: Engine, ref: str, *, set: Mapping[str, str], unset: Collection[str]) -> dict[str, str]:
    """Set and unset variables for later commands; return their environment.

    The VM may be in any state. Unsetting a variable that is not set has no effect.

    Raises `InvalidArgument` if a variable is in both, or if the environment is too large to start a command with;
    `NotFound`.
    """
    if both := sorted(set.keys() & unset):
        raise InvalidArgument(f"{both[0]!r} is both in set and in unset", hint="remove it from one of them")
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
    """Send the environment to the guest if it has changed.

    Called before each command starts, so that a change does not depend on the guest: it may be paused, and a new engine
    does not know which environment the guest has.

    Raises `AgentError`, `NotFound`.
    """
    record = engine.store.get_vm(ref)
    vm = engine.vm_of(record)
    env = record.spec.env_vars
    if vm.known_env != env:
        await vm.agent.set_env(env)
        vm.known_env = env
