"""How the stub behaves: a small JSON file beside the programs, read again at each call."""

from __future__ import annotations

import json
import os
import time
from typing import Any, NamedTuple

DEFAULTS: dict[str, Any] = {
    "version": "1.16.1",
    "guest": "ok",
    "gates_vsock": False,
    "faults": [],
    "record": False,
    "lifetime_s": 600,
    "python_path": [],
}
"""``record``: ``True`` writes each request to a file beside the API socket, ``SOCKET.requests.jsonl``; a path names
another file, also for a VMM in a chroot. For ``guest`` see `guest.BEHAVIOURS`. ``gates_vsock``: after a resume nothing
reaches the guest through vsock, as in 1.16.0 and 1.16.1: they wait for an answer to an event that they did not send.
"""

APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


class Fault(NamedTuple):
    """Misbehaviour at one call.

    ``call`` is ``PUT /drives/overlay``, ``PUT /actions InstanceStart``, ``PATCH /vm Paused``, ``vsock``, ``launch`` or,
    of the jailer, ``jailer STEP``.
    ``do`` is ``refuse`` (close the connection), ``answer`` (with ``status`` and ``message``), ``hang`` or ``die`` (with
    ``status``, or by ``signal``).
    ``when`` is ``before`` the call takes effect or ``after`` it. The first ``skip`` calls are served as usual, and
    so are all others after ``times`` faults, unless that is 0.
    """

    call: str
    do: str
    when: str = "before"
    status: int = 0
    message: str = ""
    signal: int = 0
    skip: int = 0
    times: int = 0


class Settings:
    """The settings of a running stub. Faults may change while it runs; everything else is read once."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # from a chroot, the path leads nowhere
        self._calls: dict[tuple[str, str], int] = {}
        self.values = self._read()
        record = self.values["record"]
        self.record_fd = os.open(record, APPEND, 0o644) if isinstance(record, str) else None

    def _read(self) -> dict[str, Any]:
        return DEFAULTS | json.loads(os.pread(self._fd, os.fstat(self._fd).st_size, 0))

    def fault(self, when: str, *names: str) -> Fault | None:
        """Return what is to go wrong ``when`` the call with any of these names is served."""
        for values in self._read()["faults"]:
            fault = Fault(**values)
            if fault.when != when or fault.call not in names:
                continue
            count = self._calls.get((fault.call, when), 0)
            self._calls[fault.call, when] = count + 1
            if count >= fault.skip and not (fault.times and count >= fault.skip + fault.times):
                return fault
        return None


def die(fault: Fault) -> None:
    """End this process as the fault says."""
    if fault.signal:
        os.kill(os.getpid(), fault.signal)
        time.sleep(10)  # the main thread handles it
    os._exit(fault.status)
