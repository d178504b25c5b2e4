"""The initramfs: the agent as ``/init``, and the modules that it loads (``protocol/agent.md`` §4)."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from squib.errors import InvalidArgument
from squib.host import files
from squib.kernels import cpio, modules
from squib.kernels.catalog import Kernel
from squib.kernels.modules import Module
from squib.paths import Home

_FORMAT = b"squib initramfs 1"


class InitramfsStore:
    """The initramfs archives in the cache: one for each agent and set of modules.

    They are not compressed: a guest takes as long to unpack one as it does to read the plain one.
    """

    def __init__(self, home: Home) -> None:
        self._home = home

    def ensure(self, kernel: Kernel, agent: Path) -> Path:
        """The archive for a kernel and an agent binary; written if it is not there. A few milliseconds.

        Raises `InvalidArgument` if there is no such agent or a module is damaged, `DiskFull`.
        """
        try:
            init = agent.read_bytes()
        except OSError as error:
            raise InvalidArgument(f"the guest agent {agent} cannot be read: {error.strerror}") from error
        loaded = modules.load_order(kernel.modules_dir, kernel.modules) if kernel.modules_dir else ()
        path = self._home.initramfs / f"{_key(init, loaded)}.cpio"
        if not path.exists():
            self._write(path, init, loaded)
        return path

    def _write(self, path: Path, init: bytes, loaded: Sequence[Module]) -> None:
        # Two that write the same at once do no harm: equal bytes, each in a place of its own until it is whole.
        partial = self._home.building / f"initramfs.{secrets.token_hex(8)}"
        with files.disk_errors(self._home.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.parent.mkdir(exist_ok=True)
            try:
                with partial.open("xb") as file:
                    file.writelines(cpio.archive(entries(init, loaded)))
                partial.chmod(0o444)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)


def entries(init: bytes, loaded: Sequence[Module]) -> Iterator[cpio.Entry]:
    """What the archive holds. The console's node is for what the kernel opens before the agent has mounted ``/dev``."""
    for folder in ("dev", "newroot", "proc", "squib", "squib/modules", "sys"):
        yield cpio.directory(folder)
    yield cpio.character_device("dev/console", 5, 1)
    yield cpio.regular("init", init, executable=True)
    yield cpio.regular("squib/modules.list", "".join(f"{module.file_name}\n" for module in loaded).encode())
    for module in loaded:
        yield cpio.regular(f"squib/modules/{module.file_name}", module.data)


def _key(init: bytes, loaded: Sequence[Module]) -> str:
    """A digest of all that the archive is made of."""
    key = hashlib.sha256(_FORMAT)
    for name, data in (("init", init), *((module.file_name, module.data) for module in loaded)):
        key.update(f"\n{name} {hashlib.sha256(data).hexdigest()}".encode())
    return key.hexdigest()
