"""Flags that several commands share, and how their values are parsed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from squib.cli.args.units import parse_duration_s, parse_size_mib
from squib.errors import InvalidArgument

if TYPE_CHECKING:
    from squib.models import ExecRequest, VMConfig
    from squib.sdk.client import EngineClient

Ref = Annotated[str, typer.Argument(metavar="VM", help="ID or name of a VM.", show_default=False)]
SnapshotRef = Annotated[
    str, typer.Argument(metavar="SNAPSHOT", help="ID or name of a snapshot: squib snapshot ls.", show_default=False)
]
SnapshotRefs = Annotated[
    list[str], typer.Argument(metavar="SNAPSHOT...", help="IDs or names of snapshots.", show_default=False)
]
Refs = Annotated[list[str], typer.Argument(metavar="VM...", help="IDs or names of VMs.", show_default=False)]
Name = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Name of the VM: 1-63 letters, digits, '_', '.' or '-'. Default: its ID."),
]
Project = Annotated[str | None, typer.Option(metavar="NAME", help="Project of the VM, for squib list --project.")]
VCPUs = Annotated[
    int | None, typer.Option("--vcpus", "--cpus", metavar="N", help="Number of virtual CPUs, 1-64. Default: 1.")
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Memory: 512 (MiB), 512m or 1g. Default: as much as the image needs, at least 128."
    ),
]
Disk = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Size of the writable disk: 10gb or 512mb. Only used blocks take space. Default: 10gb."
    ),
]
Runtime = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Image to use as the root filesystem: base or python3.13. Default: base."),
]
Kernel = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Linux kernel to boot instead of squib's own: a bzImage or an ELF vmlinux."),
]
Rootfs = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="Root filesystem to use instead of --runtime: squashfs or ext4. It is never modified."
    ),
]
Driver = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="VMM that runs the VM: firecracker, qemu, or auto (the first that works). Default: $SQUIB_DRIVER or auto.",
    ),
]
NoJailer = Annotated[
    bool,
    typer.Option("--no-jailer", help="Run Firecracker without its jailer, as the engine's user. For development only."),
]
BootArgs = Annotated[str | None, typer.Option(metavar="ARGS", help="Extra arguments for the kernel's command line.")]
Nested = Annotated[
    bool, typer.Option("--nested", help="Give the VM a working /dev/kvm, so that it can run VMs itself.")
]
Cold = Annotated[bool, typer.Option("--cold", help="Boot the VM, even if it could be cloned from a template.")]
FromSnapshot = Annotated[
    str | None,
    typer.Option(
        "--snapshot",
        metavar="SNAPSHOT",
        help="Create the VM from a snapshot: it continues from there; with --cold, it boots from the snapshot's disk.",
    ),
]
Env = Annotated[
    list[str] | None,
    typer.Option(
        "--env",
        "-e",
        metavar="K=V",
        help="Set an environment variable for every command in the VM. K alone copies the local value. Repeatable.",
    ),
]
CommandEnv = Annotated[
    list[str] | None,
    typer.Option(
        "--env",
        "-e",
        metavar="K=V",
        help="Set an environment variable for the command. K alone copies the local value. Repeatable.",
    ),
]
EnvFile = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE",
        help="Read variables from a file with a line K=V or K for each. --env takes precedence. Repeatable.",
    ),
]
BootTimeout = Annotated[str, typer.Option(metavar="TIME", help="Time limit for booting: 30 (seconds), 90s or 2m.")]
Timeout = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Kill the command and its descendants after this time, with exit status 124: 30 (seconds), 5m or 1h.",
    ),
]
User = Annotated[
    str | None,
    typer.Option(
        "--user",
        "-u",
        metavar="USER",
        help="User to run the command as: name, uid, name:group or uid:gid. Default: root.",
    ),
]
Workdir = Annotated[
    str | None,
    typer.Option(
        "--workdir", "-w", metavar="DIR", help="Working directory in the VM. Default: the user's home directory."
    ),
]
VMUser = Annotated[
    str | None,
    typer.Option(
        "--user",
        "-u",
        metavar="USER",
        help="User for commands and files unless they name one: name, uid, name:group or uid:gid. Default: root.",
    ),
]
VMWorkdir = Annotated[
    str | None,
    typer.Option(
        "--workdir",
        "-w",
        metavar="DIR",
        help="Working directory of commands, where relative paths begin: an absolute path. Default: the user's home.",
    ),
]
FilesUser = Annotated[
    str | None,
    typer.Option(
        "--user",
        "-u",
        metavar="USER",
        help="User in the VM with whose rights files are copied: name or uid. Default: the VM's user.",
    ),
]
NoParents = Annotated[
    bool, typer.Option("--no-parents", help="Do not create missing parent directories of DST in the VM.")
]
Sudo = Annotated[
    bool, typer.Option("--sudo", help="Run as root on behalf of the user, starting in the user's home directory.")
]
Interactive = Annotated[
    bool,
    typer.Option(
        "--interactive",
        "-i",
        help="Pass standard input to the command. If input and output are terminals, allocate one for it, as -t does.",
    ),
]
Owner = Annotated[
    str | None,
    typer.Option(
        metavar="USER[:GROUP]", help="Owner of the copied files: names or numbers, as known in the VM. Default: --user."
    ),
]
Mode = Annotated[
    str | None,
    typer.Option(metavar="MODE", help="Permission bits for files given as SRC, such as 0644. Default: unchanged."),
]
KeepOwner = Annotated[
    bool,
    typer.Option(
        "--keep-owner",
        "-a",
        help="Keep owners, as numbers, and user.* extended attributes. On this machine that needs root.",
    ),
]
UnsafeLinks = Annotated[
    bool,
    typer.Option("--unsafe-links", help="Also copy symbolic links that point out of a copied directory."),
]
Tty = Annotated[
    bool, typer.Option("--tty", "-t", help="Allocate a terminal for the command. Standard input must be a terminal.")
]
DetachKeysFlag = Annotated[
    str,
    typer.Option("--detach-keys", metavar="KEYS", help="Keys that detach, such as ctrl-p,ctrl-q; '' disables them."),
]
Lines = Annotated[
    int | None,
    typer.Option("--lines", "-n", metavar="N", min=0, help="Show only the last N lines. Default: all that is kept."),
]

DEFAULT_BOOT_TIMEOUT = "30s"
_MAX_MODE = 0o7777

_FLAG_OF_FIELD = {
    "name": "--name",
    "project": "--project",
    "runtime": "--runtime",
    "vcpu_count": "--vcpus",
    "mem_size_mib": "--memory",
    "disk_size_mib": "--disk",
    "kernel_path": "--kernel",
    "rootfs_path": "--rootfs",
    "boot_args": "--boot-args",
    "nested": "--nested",
    "env_vars": "--env",
    "env": "--env",
    "user": "--user",
    "cwd": "--workdir",
    "timeout_s": "--timeout",
    "driver": "--driver",
}


def connect() -> EngineClient:
    """Return a client of the local engine, or of the one at ``$SQUIB_URL``."""
    from squib.sdk.client import EngineClient

    return EngineClient()


def make_vm_config(
    *,
    name: str | None,
    project: str | None,
    vcpus: int | None,
    memory: str | None,
    disk: str | None,
    runtime: str | None,
    kernel: str | None,
    rootfs: str | None,
    boot_args: str | None,
    nested: bool,
    env: Sequence[str] | None,
    env_file: Sequence[str] | None,
    user: str | None = None,
    workdir: str | None = None,
    driver: str | None = None,
    no_jailer: bool = False,
    cold: bool = False,
    snapshot: str | None = None,
) -> VMConfig:
    """Make a VM configuration from the flags of ``create`` and ``run``.

    Raises `InvalidArgument`, which names the flag.
    """
    from squib.sdk.config import VMOptions, make_config

    if runtime is not None and rootfs is not None:
        raise InvalidArgument("--runtime and --rootfs cannot be used together", hint="use one of them")
    options: VMOptions = {"name": name, "project": project}
    if kernel is not None:
        options["kernel_path"] = kernel
    if rootfs is not None:
        options["rootfs_path"] = rootfs
    if vcpus is not None:
        options["vcpu_count"] = vcpus
    if memory is not None:
        options["mem_size_mib"] = parse_size_mib(memory, flag="--memory")
    if disk is not None:
        options["disk_size_mib"] = parse_size_mib(disk, flag="--disk")
    if runtime is not None:
        options["runtime"] = runtime
    if boot_args is not None:
        options["boot_args"] = boot_args
    if nested:
        options["nested"] = True
    if env or env_file:
        options["env_vars"] = parse_env(env, env_file)
    if user is not None:
        options["user"] = user
    if workdir is not None:
        options["cwd"] = workdir
    if driver is not None:
        options["driver"] = driver
    if no_jailer:
        options["jailer"] = False
    if cold:
        options["cold"] = True
    if snapshot is not None:
        options["snapshot"] = snapshot
    return make_config(None, options, names=_FLAG_OF_FIELD)


def parse_env(entries: Sequence[str] | None, files: Sequence[str] | None = None) -> dict[str, str]:
    """Parse the values of ``--env`` and ``--env-file`` into variables.

    ``K=V`` sets a variable; ``K`` alone copies it from this process's environment. ``entries`` take precedence over
    ``files``.

    Raises `InvalidArgument`.
    """
    variables: dict[str, str] = {}
    for file in files or ():
        from squib.cli.args.envfile import read_env_file

        variables |= read_env_file(file)
    for entry in entries or ():
        name, equals, value = entry.partition("=")
        if not equals:
            if name not in os.environ:
                raise InvalidArgument(
                    f"--env: {name!r} is not set in the local environment", hint=f"use --env {name}=VALUE"
                )
            value = os.environ[name]
        variables[name] = value
    return variables


def parse_mode(text: str | None) -> int | None:
    """Parse the value of ``--mode``. Raises `InvalidArgument`."""
    if text is None:
        return None
    if not re.fullmatch("[0-7]{1,5}", text) or int(text, 8) > _MAX_MODE:
        raise InvalidArgument(f"--mode: invalid permission bits {text!r}", hint="use octal digits: --mode 0644")
    return int(text, 8)


def make_request(
    words: Sequence[str] | None,
    *,
    user: str | None,
    sudo: bool,
    workdir: str | None,
    env: Mapping[str, str] | None,
    timeout: str | None = None,
    background: bool = False,
    restore_signal: int | None = None,
    pty: bool = False,
) -> ExecRequest:
    """Make a command from the flags of ``exec``, ``run`` and ``connect``.

    If ``words`` is ``None``, the command is a login shell. With ``pty``, it gets a terminal with this terminal's size
    and type.

    Raises `InvalidArgument`, which names the flag.
    """
    from pydantic import ValidationError

    from squib.models import ExecRequest
    from squib.sdk.config import describe

    values: dict[str, object] = {"login": True} if words is None else {"argv": list(words)}
    values |= {"user": user, "sudo": sudo, "cwd": workdir, "env": env or {}, "background": background}
    values |= {"restore_signal": restore_signal}
    if pty:
        from squib.cli.terminal.rawmode import terminal_size, terminal_type

        values |= {"pty": terminal_size(sys.stdin.fileno()), "env": terminal_type() | dict(env or {})}
    try:
        return ExecRequest.model_validate(values | {"timeout_s": parse_timeout(timeout)})
    except ValidationError as error:
        raise InvalidArgument(describe(error, names=_FLAG_OF_FIELD)) from None


def parse_boot_timeout(text: str) -> float:
    """Parse the value of ``--boot-timeout``; return seconds. Raises `InvalidArgument`."""
    from squib.models.vm import MAX_VERB_TIMEOUT_S

    return parse_duration_s(text, flag="--boot-timeout", max_s=MAX_VERB_TIMEOUT_S)


def parse_timeout(text: str | None) -> float | None:
    """Parse the value of ``--timeout``; 0 is no limit.

    Raises `InvalidArgument`.
    """
    if text is None:
        return None
    return parse_duration_s(text, flag="--timeout") or None
