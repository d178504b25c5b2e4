"""The states of a VM, and one table of all transitions between them.

    creating ──> created ──> starting ──> running ──> stopping ──> stopped
        │                       │  ^       ^   │  │                   │
        │                       v  └───────┼───┼──┴ error, stopped <──┘ (start again)
        └──────> running      error        v   └─> (the VMM ended by itself)
                                         paused

A VM that runs or is paused can be ``suspended``, and ``starting`` follows. A rollback leads to ``suspended`` from every
state that is not transitional. A start that fails before the guest goes on leads back there.

``deleting`` can follow every state. After it the VM is removed.
"""

from __future__ import annotations

from squib.errors import WrongState
from squib.models import VMState
from squib.store.database import Store
from squib.store.records import VMRecord

TRANSITIONS: dict[VMState, frozenset[VMState]] = {
    VMState.CREATING: frozenset({VMState.CREATED, VMState.RUNNING, VMState.DELETING}),
    VMState.CREATED: frozenset({VMState.STARTING, VMState.SUSPENDED, VMState.DELETING}),
    VMState.STARTING: frozenset({VMState.RUNNING, VMState.STOPPED, VMState.SUSPENDED, VMState.ERROR, VMState.DELETING}),
    VMState.RUNNING: frozenset(
        {VMState.PAUSED, VMState.SUSPENDED, VMState.STOPPING, VMState.STOPPED, VMState.ERROR, VMState.DELETING}
    ),
    VMState.PAUSED: frozenset(
        {VMState.RUNNING, VMState.SUSPENDED, VMState.STOPPING, VMState.STOPPED, VMState.ERROR, VMState.DELETING}
    ),
    VMState.SUSPENDED: frozenset({VMState.STARTING, VMState.STOPPED, VMState.DELETING}),
    VMState.STOPPING: frozenset({VMState.STOPPED, VMState.DELETING}),
    VMState.STOPPED: frozenset({VMState.STARTING, VMState.SUSPENDED, VMState.DELETING}),
    VMState.ERROR: frozenset({VMState.STARTING, VMState.SUSPENDED, VMState.DELETING}),
    VMState.DELETING: frozenset({VMState.DELETING}),
}

_VERBS = {
    VMState.STARTING: "start it",
    VMState.RUNNING: "resume it",
    VMState.PAUSED: "pause it",
    VMState.SUSPENDED: "suspend it",
    VMState.STOPPING: "stop it",
    VMState.DELETING: "delete it",
}
"""How an error message names the transition to a state."""

UP = frozenset({VMState.RUNNING, VMState.PAUSED})
"""The states in which a VM has a VMM and is not about to end."""

WITH_VMM = UP | {VMState.CREATING, VMState.STARTING, VMState.STOPPING, VMState.DELETING}
"""The states in which a VMM may exist: the engine stays while a VM is in one of them."""


def sources(to: VMState) -> frozenset[VMState]:
    """Return the states from which ``to`` can be reached."""
    return frozenset(state for state, targets in TRANSITIONS.items() if to in targets)


def transition(store: Store, record: VMRecord, to: VMState, *, reason: str = "", **columns: object) -> None:
    """Change the state of a VM if its current state allows that.

    Raises `WrongState`.
    """
    if not store.change_state(record.vm_id, expected=sources(to), to=to, reason=reason, **columns):
        raise wrong_state(store.get_vm(record.vm_id), _VERBS.get(to, to.value))


def wrong_state(record: VMRecord, wanted: str, *, hint: str = "") -> WrongState:
    """Return the error for an operation that the VM's state does not allow.

    ``wanted`` names the operation in the message, such as ``pause it``. The default ``hint`` is what leads out of the
    state.
    """
    why = f" ({record.reason})" if record.reason else ""
    hint = hint or {
        VMState.CREATED: f"squib start {record.name}",
        VMState.PAUSED: f"squib resume {record.name}",
        VMState.STOPPED: f"squib start {record.name}",
        VMState.SUSPENDED: f"squib start {record.name}",
        VMState.ERROR: f"squib logs {record.name} shows why; retry with: squib start {record.name}",
    }.get(record.state, f"squib inspect {record.name} shows its state")
    return WrongState(f"VM {record.name} is {record.state}{why}; cannot {wanted}", hint=hint)
