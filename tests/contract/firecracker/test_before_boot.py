"""What a Firecracker answers before its guest is started. No KVM is needed for that."""

from typing import Any

import pytest

from tests.contract.firecracker.vmm import BOOT, DISK, START, VSOCK, Vmm

BEFORE = "The requested operation is not supported before starting the microVM."
VCPUS = (
    "Machine config error: The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even number if"
    " SMT is enabled."
)
MEMORY = "Machine config error: The memory size (MiB) is either 0, or not a multiple of the configured page size."
JSON = "An error occurred when deserializing the json body of a request: "


def test_it_describes_itself(vmm: Vmm) -> None:
    status, info = vmm.call("GET", "/")
    assert status == 200
    assert info == {"id": "vm-1", "state": "Not started", "vmm_version": vmm.version, "app_name": "Firecracker"}
    assert vmm.call("GET", "/version") == (200, {"firecracker_version": vmm.version})


def test_a_machine_has_defaults_and_is_configured(vmm: Vmm) -> None:
    defaults = {"vcpu_count": 1, "mem_size_mib": 128, "smt": False, "track_dirty_pages": False, "huge_pages": "None"}
    assert vmm.call("GET", "/machine-config") == (200, defaults)
    vmm.ok("PUT", "/machine-config", {"vcpu_count": 2, "mem_size_mib": 256, "track_dirty_pages": True})
    vmm.ok("PATCH", "/machine-config", {"mem_size_mib": 512})
    expected = defaults | {"vcpu_count": 2, "mem_size_mib": 512, "track_dirty_pages": True}
    assert vmm.call("GET", "/machine-config") == (200, expected)


def test_all_devices_of_a_machine_are_in_its_configuration(vmm: Vmm) -> None:
    vmm.ok("PUT", "/boot-source", BOOT)
    vmm.ok("PUT", "/drives/disk", DISK)
    vmm.ok("PUT", "/drives/root", DISK | {"drive_id": "root", "is_root_device": True, "is_read_only": True})
    vmm.ok("PUT", "/vsock", VSOCK)
    vmm.ok("PUT", "/entropy", {})
    vmm.ok("PUT", "/balloon", {"amount_mib": 16, "deflate_on_oom": True})
    status, config = vmm.call("GET", "/vm/config")
    assert status == 200
    assert config["boot-source"] == BOOT | {"initrd_path": None}
    assert config["vsock"] == VSOCK
    assert config["entropy"] == {"rate_limiter": None}
    assert config["machine-config"]["mem_size_mib"] == 128
    root, disk = config["drives"]
    assert root == DISK | {
        "drive_id": "root", "is_root_device": True, "is_read_only": True, "partuuid": None, "cache_type": "Unsafe",
        "rate_limiter": None, "io_engine": "Sync", "socket": None,
    }  # fmt: skip
    assert disk["drive_id"] == "disk"
    assert vmm.call("GET", "/balloon") == (200, config["balloon"])
    assert config["balloon"]["amount_mib"] == 16


def test_a_vsock_is_listened_on_at_once(vmm: Vmm) -> None:
    vmm.ok("PUT", "/vsock", VSOCK)
    assert (vmm.folder / "vsock").is_socket()
    vmm.vsock(1024).close()


@pytest.mark.parametrize(
    ("path", "body"), [("/logger", {"log_path": "log", "level": "Info"}), ("/metrics", {"metrics_path": "metrics"})]
)
def test_logs_and_metrics_go_to_files(vmm: Vmm, path: str, body: dict[str, str]) -> None:
    vmm.ok("PUT", path, body)
    assert (vmm.folder / path.strip("/").replace("logger", "log")).exists()


def test_metrics_are_opened_once(vmm: Vmm) -> None:
    vmm.ok("PUT", "/metrics", {"metrics_path": "metrics"})
    assert "Reinitialization of metrics not allowed." in vmm.error("PUT", "/metrics", {"metrics_path": "metrics"})


def test_a_serial_console_can_be_a_file_since_1_14(vmm: Vmm) -> None:
    if vmm.release >= (1, 14):
        vmm.ok("PUT", "/serial", {"serial_out_path": "console"})
    else:
        assert vmm.error("PUT", "/serial", {}) == "Invalid request method and/or path: PUT serial."


NEEDS_A_GUEST: list[tuple[str, str, dict[str, Any] | None]] = [
    ("PATCH", "/vm", {"state": "Paused"}),
    ("PATCH", "/vm", {"state": "Resumed"}),
    ("PATCH", "/drives/disk", {"drive_id": "disk"}),
    ("PATCH", "/balloon", {"amount_mib": 1}),
    ("GET", "/balloon/statistics", None),
    ("PUT", "/actions", {"action_type": "FlushMetrics"}),
    ("PUT", "/actions", {"action_type": "SendCtrlAltDel"}),
]


def test_what_needs_a_guest_is_refused(vmm: Vmm) -> None:
    for method, path, body in NEEDS_A_GUEST:
        assert (path, vmm.error(method, path, body)) == (path, BEFORE)


CANNOT_WORK: list[tuple[str, str, dict[str, Any] | None, str]] = [
    ("PUT", "/actions", START, "Start microvm error: Cannot start microvm without kernel configuration."),
    (
        "PUT", "/boot-source", {"kernel_image_path": "none"},
        "Boot source error: The kernel file cannot be opened: No such file or directory (os error 2)",
    ),
    (
        "PUT", "/boot-source", BOOT | {"initrd_path": "none"},
        "Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions."
        " No such file or directory (os error 2)",
    ),
    (
        "PUT", "/drives/disk", DISK | {"path_on_host": "none"},
        "Drive config error: Unable to create the virtio block device: Virtio backend error: Error manipulating the"
        " backing file: No such file or directory (os error 2) none",
    ),
    (
        "PUT", "/vsock", VSOCK | {"uds_path": "none/vsock"},
        "Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket:"
        " No such file or directory (os error 2)",
    ),
    (
        "PUT", "/balloon", {"amount_mib": 999, "deflate_on_oom": False},
        "Balloon config error: Amount of pages requested is too large.",
    ),
    ("GET", "/balloon", None, "Balloon config error: No balloon device found."),
    ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 0}, MEMORY),
    ("PUT", "/machine-config", {"vcpu_count": 33, "mem_size_mib": 128}, VCPUS),
    ("PUT", "/machine-config", {"vcpu_count": 3, "mem_size_mib": 128, "smt": True}, VCPUS),
]  # fmt: skip


def test_what_cannot_work_is_refused(vmm: Vmm) -> None:
    for method, path, body, message in CANNOT_WORK:
        assert (body, vmm.error(method, path, body)) == (body, message)


def test_a_second_root_drive_is_refused(vmm: Vmm) -> None:
    vmm.ok("PUT", "/drives/disk", DISK | {"is_root_device": True})
    second = DISK | {"drive_id": "other", "is_root_device": True}
    assert vmm.error("PUT", "/drives/other", second) == "Drive config error: A root block device already exists!"


def test_a_vsock_in_use_is_refused(vmm: Vmm) -> None:
    (vmm.folder / "vsock").touch()
    assert vmm.error("PUT", "/vsock", VSOCK).endswith("Unix socket: Address in use (os error 98)")


INVALID: list[tuple[str, str, Any, str]] = [
    ("GET", "/nothing", None, "Invalid request method and/or path: GET nothing."),
    ("PUT", "/nothing", {}, "Invalid request method and/or path: PUT nothing."),
    ("PATCH", "/boot-source", BOOT, "Invalid request method and/or path: PATCH boot-source."),
    ("GET", "/", {}, "GET request cannot have a body."),
    ("PUT", "/boot-source", None, "Empty PUT request."),
    ("PATCH", "/vm", None, "Empty PATCH request."),
    ("PATCH", "/machine-config", {}, "Empty PATCH request."),
    ("PUT", "/drives", DISK, "The ID cannot be empty."),
    ("PUT", "/drives/a-b", DISK, "API Resource IDs can only contain alphanumeric characters and underscores."),
    ("PUT", "/drives/other", DISK, "The id from the path does not match the id from the body!"),
    ("PUT", "/boot-source", {}, JSON + "missing field `kernel_image_path`"),
    (
        "PUT", "/boot-source", BOOT | {"kernel": 1},
        JSON + "unknown field `kernel`, expected one of `kernel_image_path`, `initrd_path`, `boot_args`",
    ),
    ("PUT", "/boot-source", {"kernel_image_path": 5}, JSON + "invalid type: integer `5`, expected a string"),
    ("PUT", "/boot-source", {"kernel_image_path": True}, JSON + "invalid type: boolean `true`, expected a string"),
    ("PUT", "/boot-source", {"kernel_image_path": []}, JSON + "invalid type: sequence, expected a string"),
    ("PUT", "/vsock", VSOCK | {"guest_cid": "3"}, JSON + 'invalid type: string "3", expected u32'),
    ("PUT", "/vsock", VSOCK | {"guest_cid": -1}, JSON + "invalid value: integer `-1`, expected u32"),
    ("PUT", "/vsock", VSOCK | {"guest_cid": 3.5}, JSON + "invalid type: floating point `3.5`, expected u32"),
    ("PUT", "/drives/disk", DISK | {"is_root_device": 1}, JSON + "invalid type: integer `1`, expected a boolean"),
    (
        "PUT", "/drives/disk", DISK | {"io_engine": "Fast"},
        JSON + "unknown variant `Fast`, expected `Async` or `Sync`",
    ),
    (
        "PUT", "/drives/disk", DISK | {"rate_limiter": {"bandwidth": {"size": 1}}},
        JSON + "missing field `refill_time`",
    ),
    (
        "PUT", "/actions", {"action_type": "Stop"},
        JSON + "unknown variant `Stop`, expected one of `FlushMetrics`, `InstanceStart`, `SendCtrlAltDel`",
    ),
    ("PATCH", "/vm", {"state": "Halted"}, JSON + "unknown variant `Halted`, expected `Paused` or `Resumed`"),
    ("PUT", "/vsock", b"nonsense", JSON + "expected ident"),
    ("PUT", "/vsock", b"x", JSON + "expected value"),
    ("PUT", "/entropy", b"{} {}", JSON + "trailing characters"),
]  # fmt: skip


def test_an_invalid_request_is_refused(vmm: Vmm) -> None:
    for method, path, body, message in INVALID:
        assert (method, path, body, vmm.error(method, path, body)) == (method, path, body, message)
