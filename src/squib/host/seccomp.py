"""Seccomp filters, as programs for the kernel. Pure functions.

Sources: ``seccomp(2)``, ``linux/seccomp.h``, ``linux/audit.h``, ``linux/bpf_common.h``.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Sequence

_ALLOW, _KILL, _EPERM = 0x7FFF_0000, 0x8000_0000, 0x0005_0001
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4  # struct seccomp_data
_ARCHITECTURES = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
_X32 = 0x4000_0000
_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter
_OUTSIDE = {
    "x86_64": (41, 248, 249, 250, 425),  # socket, add_key, request_key, keyctl, io_uring_setup
    "aarch64": (198, 217, 218, 219, 425),
}


def without_outside(machine: str = platform.machine()) -> bytes:
    """Return a filter against the system calls that reach outside namespaces.

    Sockets of families such as vsock reach the hypervisor under this host; keyrings are shared; io_uring can create
    sockets too.
    """
    return _forbid(_OUTSIDE[machine], _ARCHITECTURES[machine])


def _forbid(numbers: Sequence[int], architecture: int) -> bytes:
    """Return a filter that makes system calls fail with EPERM.

    A call of another architecture, such as a 32-bit one, kills the process.
    """
    count = len(numbers)
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_JUMP_IF_AT_LEAST, count + 1, 0, _X32),
        *((_JUMP_IF_EQUAL, count - at, 0, number) for at, number in enumerate(numbers)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _EPERM),
    ]
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)
