"""Move the files of an older squib to where this version expects them."""

from __future__ import annotations

import contextlib

from squib.paths import Home, VMPaths

_QEMU_FILES = ("agent.sock", "qmp.sock", "console.sock", "console.log", "console.log.1", "vmm.log")


def upgrade_files(home: Home) -> None:
    """Move QEMU's files from each VM's directory to its driver directory.

    Schema 1 kept them in the VM's directory. Idempotent. Sockets are moved too: a running VMM still listens on them.
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
