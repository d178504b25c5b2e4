"""Values as an engine answers with, built from the real models."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from squib.models import OutputRange, ProcessInfo, PtySize, VMInfo, VMState
from squib.protocol.frames import FrameKind, encode_json

DIGEST = "sha256:" + "5c" * 32
NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


def make_vm(vm_id: str = "vm-1", **fields: Any) -> VMInfo:
    values: dict[str, Any] = {
        "vm_id": vm_id,
        "name": vm_id,
        "state": VMState.RUNNING,
        "project": None,
        "runtime": "base",
        "kernel": DIGEST,
        "rootfs": DIGEST,
        "vcpu_count": 1,
        "mem_size_mib": 128,
        "disk_size_mib": 10240,
        "boot_args": "",
        "env_names": [],
        "driver": "qemu",
        "accelerator": "tcg",
        "pid": 4711,
        "created_at": NOW,
        "started_at": NOW,
        "stopped_at": None,
    }
    return VMInfo.model_validate(values | fields)


def make_process(process_id: str, **fields: Any) -> ProcessInfo:
    values: dict[str, Any] = {
        "id": process_id, "pid": 312, "argv": ["sleep", "9"], "user": "root", "started_at": NOW, "background": True,
        "pty": None, "stdin": False, "readers": 0, "stdout": OutputRange(), "stderr": OutputRange(), "running": True,
    }  # fmt: skip
    return ProcessInfo.model_validate(values | fields)


TERMINAL = {"pty": PtySize(), "argv": ["-bash"]}
"""Fields of a process with a terminal."""


def exit_frame(code: int) -> bytes:
    """The last frame of a command's output."""
    return encode_json(FrameKind.EXIT, {"exit_code": code, "signal": None, "timed_out": False, "duration_ms": 12})
