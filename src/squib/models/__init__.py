"""The values that cross squib's boundaries: requests in, descriptions out.

All are frozen. Sizes are in MiB and times in seconds unless the name says otherwise. User input is checked here and
only here, so a value that exists is valid.
"""

from squib.models.assets import (
    AssetRef,
    CachedRef,
    HostFileRef,
    ImageInfo,
    KernelInfo,
    OnProgress,
    Progress,
    TemplateInfo,
)
from squib.models.base import (
    MAX_PATH_BYTES,
    NAME_PATTERN,
    Env,
    EnvName,
    GuestString,
    Name,
    RequestModel,
    ResponseModel,
    StoredModel,
    check_env,
    check_env_name,
    check_name,
)
from squib.models.engine import Check, CheckStatus, DriverChoice, EngineInfo, Fix, WireError
from squib.models.files import (
    MAX_FILE_NAME_BYTES,
    Account,
    FileEvent,
    FileEventType,
    FileInfo,
    FileType,
    check_file_name,
)
from squib.models.process import MAX_TIMEOUT_S, ExecRequest, OutputRange, ProcessInfo, PtySize
from squib.models.snapshots import MAX_FORKS, ForkResult, SnapshotInfo, TreeKind, TreeNode
from squib.models.vm import DEFAULT_DISK_SIZE_MIB, OLDER_CLIENT, VMConfig, VMDetails, VMInfo, VMState

__all__ = [
    "DEFAULT_DISK_SIZE_MIB",
    "MAX_FILE_NAME_BYTES",
    "MAX_FORKS",
    "MAX_PATH_BYTES",
    "MAX_TIMEOUT_S",
    "NAME_PATTERN",
    "OLDER_CLIENT",
    "Account",
    "AssetRef",
    "CachedRef",
    "Check",
    "CheckStatus",
    "DriverChoice",
    "EngineInfo",
    "Env",
    "EnvName",
    "ExecRequest",
    "FileEvent",
    "FileEventType",
    "FileInfo",
    "FileType",
    "Fix",
    "ForkResult",
    "GuestString",
    "HostFileRef",
    "ImageInfo",
    "KernelInfo",
    "Name",
    "OnProgress",
    "OutputRange",
    "ProcessInfo",
    "Progress",
    "PtySize",
    "RequestModel",
    "ResponseModel",
    "SnapshotInfo",
    "StoredModel",
    "TemplateInfo",
    "TreeKind",
    "TreeNode",
    "VMConfig",
    "VMDetails",
    "VMInfo",
    "VMState",
    "WireError",
    "check_env",
    "check_env_name",
    "check_file_name",
    "check_name",
]
