"""The API's requests as data, and the check of one request against them.

Only what squib may use is here: no networks or metadata. Where Firecracker accepts more than its OpenAPI
file documents (null for a missing field, other spellings of log levels), the stub follows the file. ``since`` is the
version that has a field or an operation first; 1.10 is the oldest that squib supports.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

OLDEST = (1, 10)
_MAX_U64 = 2**64 - 1


class String(NamedTuple):
    pass


class Boolean(NamedTuple):
    pass


class Unsigned(NamedTuple):
    """An integer from ``minimum`` to ``maximum``; ``name`` is its Rust type."""

    name: str
    maximum: int
    minimum: int = 0


class Enum(NamedTuple):
    values: tuple[str, ...]


class Array(NamedTuple):
    item: Struct


class Field(NamedTuple):
    type: String | Boolean | Unsigned | Enum | Array | Struct
    required: bool = False
    since: tuple[int, int] = OLDEST


class Struct(NamedTuple):
    """An object without other fields; ``name`` is its Rust type."""

    name: str
    fields: dict[str, Field]


class Operation(NamedTuple):
    """A method on a path. ``phase`` says whether it is allowed ``before`` the boot, ``after`` it or at ``any`` time."""

    method: str
    path: str
    phase: str
    body: Struct | None = None
    since: tuple[int, int] = OLDEST


STRING, BOOLEAN = String(), Boolean()
U8, U16, U32, U64 = (Unsigned(f"u{bits}", 2**bits - 1) for bits in (8, 16, 32, 64))
USIZE = Unsigned("usize", _MAX_U64)

_BUCKET = Struct(
    "TokenBucketConfig",
    {"size": Field(U64, True), "one_time_burst": Field(U64), "refill_time": Field(U64, True)},
)
_LIMITER = Struct("RateLimiterConfig", {"bandwidth": Field(_BUCKET), "ops": Field(_BUCKET)})

BOOT_SOURCE = Struct(
    "BootSourceConfig",
    {"kernel_image_path": Field(STRING, True), "initrd_path": Field(STRING), "boot_args": Field(STRING)},
)
DRIVE = Struct(
    "BlockDeviceConfig",
    {
        "drive_id": Field(STRING, True),
        "partuuid": Field(STRING),
        "is_root_device": Field(BOOLEAN, True),
        "cache_type": Field(Enum(("Unsafe", "Writeback"))),
        "is_read_only": Field(BOOLEAN),
        "path_on_host": Field(STRING),
        "rate_limiter": Field(_LIMITER),
        "io_engine": Field(Enum(("Async", "Sync"))),
        "socket": Field(STRING),
    },
)
DRIVE_UPDATE = Struct(
    "BlockDeviceUpdateConfig",
    {"drive_id": Field(STRING, True), "path_on_host": Field(STRING), "rate_limiter": Field(_LIMITER)},
)
_CPU_TEMPLATE = Enum(("C3", "T2", "T2S", "T2CL", "T2A", "V1N1", "None"))


def _machine(name: str, *, required: bool) -> Struct:
    return Struct(
        name,
        {
            "vcpu_count": Field(Unsigned("u8", 32, 1), required),
            "mem_size_mib": Field(USIZE, required),
            "smt": Field(BOOLEAN),
            "cpu_template": Field(_CPU_TEMPLATE),
            "track_dirty_pages": Field(BOOLEAN),
            "huge_pages": Field(Enum(("None", "2M"))),
        },
    )


MACHINE = _machine("MachineConfig", required=True)
MACHINE_UPDATE = _machine("MachineConfigUpdate", required=False)
VSOCK = Struct(
    "VsockDeviceConfig",
    {
        "vsock_id": Field(STRING),
        "guest_cid": Field(Unsigned("u32", 2**32 - 1, 3), True),
        "uds_path": Field(STRING, True),
    },
)
ENTROPY = Struct("EntropyDeviceConfig", {"rate_limiter": Field(_LIMITER)})
BALLOON = Struct(
    "BalloonDeviceConfig",
    {
        "amount_mib": Field(U32, True),
        "deflate_on_oom": Field(BOOLEAN, True),
        "stats_polling_interval_s": Field(U16),
        "free_page_hinting": Field(BOOLEAN, since=(1, 14)),
        "free_page_reporting": Field(BOOLEAN, since=(1, 14)),
    },
)
BALLOON_UPDATE = Struct("BalloonUpdateConfig", {"amount_mib": Field(U32, True)})
BALLOON_STATISTICS = Struct("BalloonUpdateStatsConfig", {"stats_polling_interval_s": Field(U16, True)})
LOGGER = Struct(
    "LoggerConfig",
    {
        "log_path": Field(STRING),
        "level": Field(Enum(("Error", "Warning", "Info", "Debug", "Trace", "Off"))),
        "show_level": Field(BOOLEAN),
        "show_log_origin": Field(BOOLEAN),
        "module": Field(STRING),
    },
)
METRICS = Struct("MetricsConfig", {"metrics_path": Field(STRING, True)})
SERIAL = Struct("SerialConfig", {"serial_out_path": Field(STRING), "rate_limiter": Field(_BUCKET, since=(1, 16))})
ACTION = Struct("ActionBody", {"action_type": Field(Enum(("FlushMetrics", "InstanceStart", "SendCtrlAltDel")), True)})
VM = Struct("Vm", {"state": Field(Enum(("Paused", "Resumed")), True)})
SNAPSHOT_CREATE = Struct(
    "CreateSnapshotParams",
    {
        "snapshot_type": Field(Enum(("Diff", "Full"))),
        "snapshot_path": Field(STRING, True),
        "mem_file_path": Field(STRING, True),
    },
)
_MEM_BACKEND = Struct(
    "MemBackendConfig",
    {"backend_path": Field(STRING, True), "backend_type": Field(Enum(("File", "Uffd")), True)},
)
_NETWORK_OVERRIDE = Struct("NetworkOverride", {"iface_id": Field(STRING, True), "host_dev_name": Field(STRING, True)})
SNAPSHOT_LOAD = Struct(
    "LoadSnapshotConfig",
    {
        "snapshot_path": Field(STRING, True),
        "mem_file_path": Field(STRING),
        "mem_backend": Field(_MEM_BACKEND),
        "enable_diff_snapshots": Field(BOOLEAN),
        "track_dirty_pages": Field(BOOLEAN, since=(1, 13)),
        "resume_vm": Field(BOOLEAN),
        "network_overrides": Field(Array(_NETWORK_OVERRIDE), since=(1, 12)),
        "vsock_override": Field(Struct("VsockOverride", {"uds_path": Field(STRING, True)}), since=(1, 16)),
        "clock_realtime": Field(BOOLEAN, since=(1, 16)),
    },
)

OPERATIONS = (
    Operation("GET", "/", "any"),
    Operation("GET", "/version", "any"),
    Operation("GET", "/vm/config", "any"),
    Operation("GET", "/machine-config", "any"),
    Operation("PUT", "/machine-config", "before", MACHINE),
    Operation("PATCH", "/machine-config", "before", MACHINE_UPDATE),
    Operation("PUT", "/boot-source", "before", BOOT_SOURCE),
    Operation("PUT", "/drives/{drive_id}", "before", DRIVE),
    Operation("PATCH", "/drives/{drive_id}", "after", DRIVE_UPDATE),
    Operation("PUT", "/vsock", "before", VSOCK),
    Operation("PUT", "/entropy", "before", ENTROPY),
    Operation("GET", "/balloon", "any"),
    Operation("PUT", "/balloon", "before", BALLOON),
    Operation("PATCH", "/balloon", "after", BALLOON_UPDATE),
    Operation("GET", "/balloon/statistics", "after"),
    Operation("PATCH", "/balloon/statistics", "after", BALLOON_STATISTICS),
    Operation("PUT", "/logger", "before", LOGGER),
    Operation("PUT", "/metrics", "before", METRICS),
    Operation("PUT", "/serial", "before", SERIAL, since=(1, 14)),
    Operation("PUT", "/actions", "any", ACTION),
    Operation("PATCH", "/vm", "after", VM),
    Operation("PUT", "/snapshot/create", "after", SNAPSHOT_CREATE),
    Operation("PUT", "/snapshot/load", "before", SNAPSHOT_LOAD),
)


class Invalid(Exception):
    """A request that is wrong whatever the state is; the text is Firecracker's ``fault_message``."""


def check(method: str, path: str, body: bytes, version: tuple[int, int]) -> tuple[Operation, dict[str, Any]]:
    """Return the operation that a request asks for, and its body; raise `Invalid`."""
    words = path.strip("/").split("/")
    operation = _find(method, words, version)
    if method == "GET" and body:
        raise Invalid("GET request cannot have a body.")
    if method in ("PUT", "PATCH") and not body:
        raise Invalid(f"Empty {method} request.")
    if operation is None or operation.body is None:
        if operation is None:
            raise Invalid(f"Invalid request method and/or path: {method} {words[0]}.")
        return operation, {}
    if operation.path.startswith("/drives/"):
        _check_id(words[1] if len(words) > 1 else "")
    values = _parse(body)
    _check_value(values, operation.body, version, body.decode())
    if operation.path.startswith("/drives/") and values["drive_id"] != words[1]:
        raise Invalid("The id from the path does not match the id from the body!")
    if operation.body is MACHINE_UPDATE and not values:
        raise Invalid("Empty PATCH request.")
    return operation, values


def _find(method: str, words: list[str], version: tuple[int, int]) -> Operation | None:
    for operation in OPERATIONS:
        expected = operation.path.strip("/").split("/")
        if operation.method != method or operation.since > version:
            continue
        if expected == words or (expected[-1].startswith("{") and expected[0] == words[0] and len(words) < 3):
            return operation
    return None


def _check_id(name: str) -> None:
    if not name:
        raise Invalid("The ID cannot be empty.")
    if not all(char == "_" or char.isalnum() for char in name):
        raise Invalid("API Resource IDs can only contain alphanumeric characters and underscores.")


def _serde(message: str, text: str, offset: int) -> Invalid:
    line, column = text.count("\n", 0, offset) + 1, offset - (text.rfind("\n", 0, offset) + 1)
    reason = f"{message} at line {line} column {column}"
    return Invalid(f"An error occurred when deserializing the json body of a request: {reason}.")


def _parse(body: bytes) -> Any:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise _serde("invalid unicode code point", "", 0) from None

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for name, _ in pairs:
            if sum(name == other for other, _ in pairs) > 1:
                raise _serde(f"duplicate field `{name}`", text, text.rfind(f'"{name}"') + len(name) + 2)
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        word = text[error.pos :].lstrip()[:1]
        message = "expected ident" if word and word in "ntf" else "expected value"
        message = "trailing characters" if error.msg == "Extra data" else message
        raise _serde(message, text, error.pos + 1) from None


def _check_value(value: Any, kind: Any, version: tuple[int, int], text: str, name: str = "") -> None:
    offset = text.find(f'"{name}"') + len(name) + 2 if name else len(text)
    match kind:
        case Struct():
            if not isinstance(value, dict):
                raise _serde(f"invalid type: {_shown(value)}, expected struct {kind.name}", text, offset)
            _check_fields(value, kind, version, text)
        case Enum():
            if not isinstance(value, str):
                raise _serde(f"invalid type: {_shown(value)}, expected string or map", text, offset)
            if value not in kind.values:
                raise _serde(f"unknown variant `{value}`, expected {_listed(kind.values)}", text, offset)
        case Unsigned():
            if isinstance(value, bool) or not isinstance(value, int):
                raise _serde(f"invalid type: {_shown(value)}, expected {kind.name}", text, offset)
            if name == "vcpu_count" and not kind.minimum <= value <= kind.maximum and 0 <= value < 256:
                raise Invalid(INVALID_VCPU_COUNT)
            if not kind.minimum <= value <= kind.maximum:
                raise _serde(f"invalid value: integer `{value}`, expected {kind.name}", text, offset)
        case Array():
            if not isinstance(value, list):
                raise _serde(f"invalid type: {_shown(value)}, expected a sequence", text, offset)
            for item in value:
                _check_value(item, kind.item, version, text, name)
        case Boolean() if not isinstance(value, bool):
            raise _serde(f"invalid type: {_shown(value)}, expected a boolean", text, offset)
        case String() if not isinstance(value, str):
            raise _serde(f"invalid type: {_shown(value)}, expected a string", text, offset)


INVALID_VCPU_COUNT = (
    "Machine config error: The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even number if"
    " SMT is enabled."
)


def _check_fields(value: dict[str, Any], struct: Struct, version: tuple[int, int], text: str) -> None:
    known = {name: field for name, field in struct.fields.items() if field.since <= version}
    for name, part in value.items():
        if name not in known:
            offset = text.find(f'"{name}"') + len(name) + 2
            raise _serde(f"unknown field `{name}`, expected {_listed(tuple(known))}", text, offset)
        _check_value(part, known[name].type, version, text, name)
    for name, field in known.items():
        if field.required and name not in value:
            raise _serde(f"missing field `{name}`", text, len(text))


def _listed(names: tuple[str, ...]) -> str:
    quoted = [f"`{name}`" for name in names]
    if len(quoted) > 2:
        return f"one of {', '.join(quoted)}"
    return " or ".join(quoted)


def _shown(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return f"boolean `{str(value).lower()}`"
        case int():
            return f"integer `{value}`"
        case float():
            return f"floating point `{value}`"
        case str():
            return f"string {json.dumps(value)}"
        case dict():
            return "map"
        case _:
            return "sequence"
