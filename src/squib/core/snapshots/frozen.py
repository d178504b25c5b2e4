"""VMs whose commands are frozen, or may be: a mark in the VM's directory says so, and what lets them go on.

The mark is there from before the freeze until the guest has got what it needs to go on. So an engine that is killed in
between is followed by one that lets the guest go on (`wake_later`).
"""

from __future__ import annotations

import asyncio
import logging
from enum import StrEnum

from squib.core.engine import Engine, RunningVM
from squib.core.lifecycle.verbs import Turn
from squib.errors import SquibError
from squib.guest.agent import Identity
from squib.host import files
from squib.models import VMState
from squib.paths import VMPaths

log = logging.getLogger("squib.frozen")

_WAKE_AGAIN_S = 0.5
_LONGEST_PAUSE_S = 5.0
_CONNECT_TIMEOUT_S = 5.0


class Needs(StrEnum):
    """What a frozen guest needs to go on: only entropy and the time, or an identity, or its environment again."""

    THAW = "thaw"
    SETUP = "setup"
    SETUP_OF_SAME_BOOT = "setup of the same boot"


def mark(vm: VMPaths, needs: Needs) -> None:
    """Note that a VM's commands may be frozen. Raises `DiskFull`, `OSError`."""
    with files.disk_errors(vm.root):
        vm.frozen_mark.write_text(needs)


def is_marked(vm: VMPaths) -> bool:
    """Return whether a VM's commands may be frozen."""
    return vm.frozen_mark.exists()


def unmark(vm: VMPaths) -> None:
    """Forget it. Idempotent."""
    vm.frozen_mark.unlink(missing_ok=True)


def _needs(vm: VMPaths) -> Needs:
    try:
        return Needs(vm.frozen_mark.read_text())
    except (OSError, ValueError):
        return Needs.THAW


async def thaw(engine: Engine, vm_id: str, vm: RunningVM) -> None:
    """Give a guest that runs the time and entropy, and an identity if it needs one; then its commands go on.

    The caller has the VM's turn. Raises `AgentError`.
    """
    paths = engine.home.vm(vm_id)
    needs = _needs(paths)
    if needs is Needs.THAW:
        await vm.agent.thaw()
    else:
        record = engine.store.get_vm(vm_id)
        identity = Identity(record.vm_id, record.name, record.machine_id)
        env = record.spec.env_vars
        await vm.agent.setup(identity, env=env, same_boot=needs is Needs.SETUP_OF_SAME_BOOT)
        vm.known_env = env
    unmark(paths)


def wake_later(engine: Engine, vm_id: str, vm: RunningVM) -> None:
    """Let a VM go on that was left standing still, in the background, as soon as its VMM and its agent respond."""
    engine.background(_wake(engine, vm_id, vm), name=f"wake {vm_id}")


async def _wake(engine: Engine, vm_id: str, vm: RunningVM) -> None:
    async def wake(turn: Turn) -> None:
        if engine.running.get(vm_id) is not vm or not is_marked(engine.home.vm(vm_id)):
            return  # it has ended, or another verb has let it go on
        state = engine.store.get_vm(vm_id).state
        paused = await vm.machine.is_paused()
        if state is VMState.PAUSED and not paused:
            await vm.machine.pause()  # a resume thaws
        if state is VMState.RUNNING:
            if paused:
                await vm.machine.resume()
            await vm.agent.shake_hands(timeout_s=_CONNECT_TIMEOUT_S)
            await thaw(engine, vm_id, vm)
            log.info("VM %s goes on", vm_id)

    pause_s, said = _WAKE_AGAIN_S, False
    while engine.running.get(vm_id) is vm:
        try:
            await engine.verbs.run(vm_id, "wake", wake)
            return
        except SquibError as error:
            if not said:
                log.warning("VM %s does not go on yet: %s", vm_id, error.message)
            said = True
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
