"""Move the files of a state directory to where this version expects them.

An older squib may have written them elsewhere.
"""

from __future__ import annotations

import contextlib

from squib.paths import Home, VMPaths

_QEMU_FILES = ("agent.sock", "qmp.sock", "console.sock", "console.log", "console.log.1", "vmm.log")


def upgrade_files(home: Home) -> None:
    """Move drivers' files to the drivers' directories.

    Schema 1 kept them in the VM's directory. A second call has no effect.

    Sockets are moved too: a running VMM still listens on them.
    """
    for folder in home.vms.iterdir():
        if folder.is_dir():
            _move_qemu_files(VMPaths(folder))


def _move_qemu_files(vm: VMPaths) -> None:
    for name in _QEMU_FILES:
        with contextlib.suppress(FileNotFoundError):
            old = vm.root / name
            old.lstat()
            vm.qemu.root.mkdir(mode=0o700, exist_ok=True)
            old.replace(vm.qemu.root / name)
