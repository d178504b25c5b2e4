"""The microVM: what has been configured, its state, and what each operation does to them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from tests.fakes.firecracker.guest import Guest
from tests.fakes.firecracker.process import Context, host_path, open_nonblocking, reason, write_all
from tests.fakes.firecracker.schema import INVALID_VCPU_COUNT, Operation
from tests.fakes.firecracker.snapshot import Memory, Unloadable, read_devices, write_devices

AFTER_BOOT = "The requested operation is not supported after starting the microVM."
BEFORE_BOOT = "The requested operation is not supported before starting the microVM."
_TOO_SMALL = "The memory size (MiB) is smaller than the previously set balloon device target size."
_BAD_SIZE = "The memory size (MiB) is either 0, or not a multiple of the configured page size."
_BAD_METRICS = "Metrics error: Cannot initialize the metrics system due to bad user input:"
_NO_BALLOON = "No balloon device found."
_NOT_PAUSED = "Cannot save the microVM state: Operation not allowed: save/restore unavailable while running"
_NOT_FRESH = "Loading a microVM snapshot not allowed after configuring boot-specific resources."
_BOOT_SPECIFIC = {"/machine-config", "/boot-source", "/drives/{drive_id}", "/vsock", "/entropy", "/balloon"}


class Refused(Exception):
    """A request that cannot be served in this state; the text is Firecracker's ``fault_message``."""


class Machine:
    """One microVM; ``on_exit`` is called by the guest's thread when the guest has ended."""

    def __init__(self, context: Context, on_exit: Callable[[int], None]) -> None:
        self._context, self._on_exit = context, on_exit
        self.state = "Not started"
        self._boot: dict[str, Any] = {}
        self._config: dict[str, Any] = {
            "vcpu_count": 1, "mem_size_mib": 128, "smt": False, "track_dirty_pages": False, "huge_pages": "None",
        }  # fmt: skip
        self._drives: list[dict[str, Any]] = []
        self._vsock: dict[str, Any] | None = None
        self._entropy: dict[str, Any] | None = None
        self._balloon: dict[str, Any] | None = None
        self._serial: str | None = None
        self._listener: socket.socket | None = None
        self._metrics: int | None = None
        self._guest: Guest | None = None
        self._memory: Memory | None = None
        self._marks: list[str] = []
        self._is_fresh = True

    def perform(self, operation: Operation, body: dict[str, Any]) -> Any:
        """Perform an operation, and return the body of its answer or ``None``; raise `Refused`."""
        started = self.state != "Not started"
        if operation.phase == "after" and not started:
            raise Refused(BEFORE_BOOT)
        if operation.phase == "before" and started:
            self._check_hotplug(operation, body)
        if operation.method != "GET" and operation.path in _BOOT_SPECIFIC:
            self._is_fresh = False
        action = getattr(self, "_" + operation.method.lower() + _NAMES[operation.path])
        return action(body)

    def _check_hotplug(self, operation: Operation, body: dict[str, Any]) -> None:
        """Check whether a device can be added to a running guest: a drive, since 1.16, on a PCI bus."""
        if not operation.path.startswith("/drives") or self._context.release < (1, 16):
            raise Refused(AFTER_BOOT)
        if not self._context.options.pci:
            raise Refused("PCI is not enabled")
        if body["drive_id"] in (drive["drive_id"] for drive in self._drives):
            raise Refused("Device ID in use")

    def _get_instance(self, _: dict[str, Any]) -> Any:
        return {
            "id": self._context.options.instance_id, "state": self.state, "vmm_version": self._context.version,
            "app_name": "Firecracker",
        }  # fmt: skip

    def _get_version(self, _: dict[str, Any]) -> Any:
        return {"firecracker_version": self._context.version}

    def _get_config(self, _: dict[str, Any]) -> Any:
        boot = {"kernel_image_path": "", "initrd_path": None, "boot_args": None} | self._boot
        return {
            "balloon": self._balloon, "drives": self._drives, "boot-source": boot, "cpu-config": None, "logger": None,
            "machine-config": self._config, "metrics": None, "mmds-config": None, "network-interfaces": [],
            "vsock": self._vsock, "entropy": self._entropy,
        } | ({"pmem": [], "memory-hotplug": None} if self._context.release >= (1, 14) else {})  # fmt: skip

    def _put_boot(self, body: dict[str, Any]) -> None:
        _open(body["kernel_image_path"], os.O_RDONLY, "Boot source error: The kernel file cannot be opened:")
        if body.get("initrd_path") is not None:
            text = "Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions."
            _open(body["initrd_path"], os.O_RDONLY, text)
        self._boot = body

    def _put_drive(self, body: dict[str, Any]) -> None:
        others = [drive for drive in self._drives if drive["drive_id"] != body["drive_id"]]
        if body["is_root_device"] and any(drive["is_root_device"] for drive in others):
            raise Refused("Drive config error: A root block device already exists!")
        failed = "Drive config error: Unable to create the virtio block device:"
        if body.get("path_on_host") is None or body.get("socket") is not None:
            raise Refused(f"{failed} Invalid block config.")
        access = os.O_RDONLY if body.get("is_read_only") else os.O_RDWR
        text = f"{failed} Virtio backend error: Error manipulating the backing file:"
        _open(body["path_on_host"], access, text, name_after=True)
        defaults = {
            "partuuid": None, "cache_type": "Unsafe", "is_read_only": False, "rate_limiter": None,
            "io_engine": "Sync", "socket": None,
        }  # fmt: skip
        same = [drive["drive_id"] == body["drive_id"] for drive in self._drives]
        position = same.index(True) if True in same else len(same)
        self._drives[position : position + 1] = [defaults | body]
        self._drives.sort(key=lambda drive: not drive["is_root_device"])

    def _patch_drive(self, body: dict[str, Any]) -> None:
        failed = "Drive config error: Unable to patch the block device:"
        drive = next((drive for drive in self._drives if drive["drive_id"] == body["drive_id"]), None)
        if drive is None:
            raise Refused(f"{failed} Device not found. Please verify the request arguments.")
        if body.get("path_on_host") is not None:
            access = os.O_RDONLY if drive["is_read_only"] else os.O_RDWR
            _open(body["path_on_host"], access, f"{failed} Error manipulating the backing file:", name_after=True)
        drive |= body

    def _get_machine(self, _: dict[str, Any]) -> Any:
        return self._config

    def _put_machine(self, body: dict[str, Any]) -> None:
        defaults = {"smt": False, "track_dirty_pages": False, "huge_pages": "None"}
        self._patch_machine(defaults | body)

    def _patch_machine(self, body: dict[str, Any]) -> None:
        config = self._config | body
        if config["smt"] and config["vcpu_count"] > 1 and config["vcpu_count"] % 2:
            raise Refused(INVALID_VCPU_COUNT)
        if config["mem_size_mib"] == 0 or (config["huge_pages"] == "2M" and config["mem_size_mib"] % 2):
            raise Refused(f"Machine config error: {_BAD_SIZE}")
        if self._balloon and config["mem_size_mib"] < self._balloon["amount_mib"]:
            raise Refused(f"Machine config error: {_TOO_SMALL}")
        if config.get("cpu_template") == "None":
            del config["cpu_template"]
        self._config = config

    def _put_vsock(self, body: dict[str, Any]) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.bind(host_path(body["uds_path"]))
            listener.listen(128)
        except OSError as error:
            listener.close()
            failed = "Vsock config error: Cannot create backend for vsock device:"
            raise Refused(f"{failed} Error binding to the host-side Unix socket: {reason(error)}") from None
        if self._listener:
            self._listener.close()
        self._listener = listener
        self._vsock = {name: body[name] for name in ("guest_cid", "uds_path")}

    def _put_entropy(self, body: dict[str, Any]) -> None:
        self._entropy = {"rate_limiter": None} | body

    def _get_balloon(self, _: dict[str, Any]) -> Any:
        if self._balloon is None:
            raise Refused(f"{self._balloon_read_error()}: {_NO_BALLOON}")
        return self._balloon

    def _put_balloon(self, body: dict[str, Any]) -> None:
        if body["amount_mib"] > self._config["mem_size_mib"]:
            raise Refused("Balloon config error: Amount of pages requested is too large.")
        defaults: dict[str, Any] = {"stats_polling_interval_s": 0}
        if self._context.release >= (1, 14):
            defaults |= {"free_page_hinting": False, "free_page_reporting": False}
        self._balloon = defaults | body

    def _patch_balloon(self, body: dict[str, Any]) -> None:
        balloon = self._active_balloon()
        if body["amount_mib"] > self._config["mem_size_mib"]:
            raise Refused(f"{self._balloon_error()}: Amount of pages requested is too large.")
        balloon["amount_mib"] = body["amount_mib"]

    def _get_statistics(self, _: dict[str, Any]) -> Any:
        kind = self._balloon_read_error()
        balloon = self._active_balloon(kind)
        if not balloon["stats_polling_interval_s"]:
            raise Refused(f"{kind}: Statistics for the balloon device are not enabled")
        mib = balloon["amount_mib"]
        return {"target_pages": mib * 256, "actual_pages": mib * 256, "target_mib": mib, "actual_mib": mib}

    def _patch_statistics(self, body: dict[str, Any]) -> None:
        balloon = self._active_balloon()
        if bool(balloon["stats_polling_interval_s"]) != bool(body["stats_polling_interval_s"]):
            raise Refused(f"{self._balloon_error()}: Cannot enable/disable the statistics after boot.")
        balloon |= body

    def _active_balloon(self, kind: str = "") -> dict[str, Any]:
        if self._balloon is None:
            raise Refused(f"{kind or self._balloon_error()}: {_NO_BALLOON}")
        return self._balloon

    def _balloon_error(self) -> str:
        return "Balloon update error" if self._context.release >= (1, 13) else "Balloon config error"

    def _balloon_read_error(self) -> str:
        started = self.state != "Not started"
        return "Internal VMM error" if started and self._context.release >= (1, 13) else "Balloon config error"

    def _put_logger(self, body: dict[str, Any]) -> None:
        log = self._context.log
        try:
            if "log_path" in body:
                log.open(body["log_path"])
        except OSError as error:
            raise Refused(f"Logger error: Failed to open target file: {reason(error)}") from None
        log.level = body.get("level", "Info").lower().replace("warning", "warn")
        log.show_level = body.get("show_level", log.show_level)
        log.show_origin = body.get("show_log_origin", log.show_origin)

    def _put_metrics(self, body: dict[str, Any]) -> None:
        self.open_metrics(body["metrics_path"])

    def open_metrics(self, path: str) -> None:
        """Open the file of the metrics; raise `Refused`."""
        if self._metrics is not None:
            raise Refused(f"{_BAD_METRICS} Reinitialization of metrics not allowed.")
        try:
            self._metrics = open_nonblocking(path)
        except OSError as error:
            raise Refused(f"{_BAD_METRICS} {reason(error)}") from None

    def _put_serial(self, body: dict[str, Any]) -> None:
        self._serial = body.get("serial_out_path")

    def _put_action(self, body: dict[str, Any]) -> None:
        action, started = body["action_type"], self.state != "Not started"
        if action == "InstanceStart":
            if started:
                raise Refused(AFTER_BOOT)
            self._start()
            return
        if not started:
            raise Refused(BEFORE_BOOT)
        assert self._guest
        if action == "SendCtrlAltDel":
            self._guest.ctrl_alt_del()
        elif self._metrics is None:
            raise Refused("Internal VMM error: Metrics error: Logger was not initialized.")
        else:
            write_all(self._metrics, b'{"utc_timestamp_ms":0,"vmm":{"panic_count":0}}\n')

    def _start(self) -> None:
        if not self._boot:
            raise Refused("Start microvm error: Cannot start microvm without kernel configuration.")
        console = 1
        if self._serial is not None:
            try:
                console = open_nonblocking(self._serial)
            except OSError as error:
                raise Refused(f"Start microvm error: Could not attach device: {reason(error)}") from None
        self._memory = Memory(self._config["mem_size_mib"], self._context.release)
        self._run_guest(console)
        self.state = "Running"

    def _run_guest(self, console: int, *, restored: bool = False, busy_port: int = 0) -> None:
        boot_args = self._boot.get("boot_args", "reboot=k panic=1").split()
        self._guest = Guest(
            self._context, self._listener, console, boot_args, self._on_exit, restored=restored, busy_port=busy_port
        )
        self._guest.start()

    def _put_snapshot(self, body: dict[str, Any]) -> None:
        """Write the devices, then the whole memory, whatever the ``snapshot_type`` is."""
        if self.state != "Paused":
            raise Refused(f"Create snapshot error: {_NOT_PAUSED}")
        assert self._memory and self._guest
        self._marks.append(self._memory.mark(len(self._marks)))
        self._guest.lose_connections()
        state = {
            "marks": self._marks, "config": self._config, "boot": self._boot, "drives": self._drives,
            "vsock": self._vsock, "entropy": self._entropy, "balloon": self._balloon, "port": self._guest.port,
        }  # fmt: skip
        kind = "snapshot"
        try:
            write_devices(body["snapshot_path"], self._context.version, state)
            kind = "memory"
            self._memory.write_to(body["mem_file_path"])
        except OSError as error:
            failed = f"Create snapshot error: Cannot perform open on the {kind} backing file:"
            raise Refused(f"{failed} {reason(error)}") from None

    def _put_load(self, body: dict[str, Any]) -> None:
        """Load what `_put_snapshot` has written. A failure ends the VMM."""
        if not self._is_fresh:
            raise Refused(f"Load snapshot error: {_NOT_FRESH}")
        try:
            port = self._load(body["snapshot_path"], body["mem_backend"]["backend_path"])
        except (Unloadable, Refused, OSError) as error:
            self._on_exit(1)
            text = reason(error) if isinstance(error, OSError) else str(error)
            raise Refused(f"Load snapshot error: Failed to restore from snapshot: {text}") from None
        self._run_guest(1, restored=True, busy_port=port if self._context.release < (1, 15) else 0)
        self.state = "Paused"
        if body.get("resume_vm"):
            self._patch_vm({"state": "Resumed"})

    def _load(self, devices: str, memory: str) -> int:
        state = read_devices(devices, self._context.version)
        self._config, self._boot, self._marks = state["config"], state["boot"], state["marks"]
        self._entropy, self._balloon = state["entropy"], state["balloon"]
        self._memory = Memory(self._config["mem_size_mib"], self._context.release, memory)
        self._memory.check(self._marks)
        for drive in state["drives"]:
            self._put_drive(drive)
        if state["vsock"]:
            self._put_vsock(state["vsock"])
        return int(state["port"])

    def _patch_vm(self, body: dict[str, Any]) -> None:
        assert self._guest
        if body["state"] == "Paused":
            self._guest.pause()
            self.state = "Paused"
        else:
            self._guest.resume()
            self.state = "Running"


_NAMES = {
    "/": "_instance", "/version": "_version", "/vm/config": "_config", "/machine-config": "_machine",
    "/boot-source": "_boot", "/drives/{drive_id}": "_drive", "/vsock": "_vsock", "/entropy": "_entropy",
    "/balloon": "_balloon", "/balloon/statistics": "_statistics", "/logger": "_logger", "/metrics": "_metrics",
    "/serial": "_serial", "/actions": "_action", "/vm": "_vm", "/snapshot/create": "_snapshot",
    "/snapshot/load": "_load",
}  # fmt: skip


def _open(path: str, access: int, failed: str, *, name_after: bool = False) -> None:
    """Check that a file can be opened like this."""
    try:
        fd = os.open(host_path(path), access | os.O_CLOEXEC)
        if access == os.O_RDONLY and not name_after:
            os.read(fd, 1)
        os.close(fd)
    except OSError as error:
        raise Refused(f"{failed} {reason(error)}{f' {path}' if name_after else ''}") from None
