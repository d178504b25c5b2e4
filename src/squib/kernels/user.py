"""A user's own kernel (``--kernel PATH``)."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from squib.errors import InvalidArgument
from squib.host.files import open_regular
from squib.kernels import bzimage, modules
from squib.kernels.catalog import Kernel

_SETUP_BYTES = 1024  # a bzImage's header is within them


def inspect(path: Path) -> Kernel:
    """Return the kernel in a file: a bzImage or an ELF ``vmlinux`` for x86-64.

    Its modules are searched in ``modules/<version>`` and ``lib/modules/<version>`` in the same directory, then in the
    host's ``/lib/modules/<version>``. If there are none, everything is assumed to be built in.

    Raises `InvalidArgument` if the file is missing, is not a kernel, or is for another architecture.
    """
    with _readable(path) as file:
        data = file.read()
        built_at = datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC)
    if not bzimage.is_bzimage(data) and not bzimage.is_elf_kernel(data):
        raise InvalidArgument(
            f"{path} is not a kernel for x86-64: neither a bzImage nor an ELF vmlinux",
            hint="on Debian a kernel is /boot/vmlinuz-$(uname -r)",
        )
    version = bzimage.version(data, source=path)
    tree = _modules_dir(path, version)
    return Kernel(
        version=version,
        digest=f"sha256:{hashlib.sha256(data).hexdigest()}",
        path=path,
        bzimage=path if bzimage.is_bzimage(data) else None,
        modules_dir=tree,
        modules=modules.GUEST_MODULES if tree else (),
        size_bytes=len(data),
        built_at=built_at,
        extra_modules=modules.EXTRA_MODULES if tree else {},
    )


def is_bzimage(path: Path) -> bool:
    """Return whether a kernel is a bzImage. Reads only its beginning.

    Raises `InvalidArgument` if the file cannot be read.
    """
    with _readable(path) as file:
        return bzimage.is_bzimage(file.read(_SETUP_BYTES))


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[BinaryIO]:
    try:
        with open_regular(path) as file:
            yield file
    except OSError as error:
        raise InvalidArgument(f"kernel {path} cannot be read: {error.strerror}") from error


def _modules_dir(kernel: Path, version: str) -> Path | None:
    folder = kernel.resolve().parent
    candidates = (
        folder / "modules" / version,
        folder / ".." / "lib" / "modules" / version,
        folder / ".." / "usr" / "lib" / "modules" / version,
        Path("/lib/modules") / version,
    )
    return next((candidate for candidate in candidates if candidate.is_dir()), None)
