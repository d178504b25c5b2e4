"""What the stub jailer checks, prepares and starts, as the real one does."""

import contextlib
import os
import select
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from squib.guest.agent import AgentClient, Identity
from tests.contract.firecracker.vmm import BOOT, DISK, START, VSOCK, Vmm, binary, connector, output_of, wait_for_api
from tests.fakes.firecracker.install import Stub, read_record
from tests.fakes.firecracker.jailer import STEPS

ARGUMENTS = {"--id": "vm-1", "--uid": "4711", "--gid": "4712", "--chroot-base-dir": "jail"}
AS_ROOT = os.geteuid() == 0


def run(stub: Stub, *arguments: str, program: Path | None = None, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the jailer to its end."""
    (stub.folder.parent / "jail").mkdir(exist_ok=True)
    words = {"--exec-file": str(program or stub.firecracker)} | ARGUMENTS
    words |= {"--" + name.replace("_", "-"): value for name, value in changes.items()}
    argv = [stub.jailer, *(word for pair in words.items() for word in pair), *arguments]
    output = stub.folder.parent / "output"  # no pipe: the VMM would hold it open
    with output.open("w") as file:
        ended = subprocess.run(argv, stdout=file, stderr=subprocess.STDOUT, cwd=stub.folder.parent, check=False)
    return subprocess.CompletedProcess(argv, ended.returncode, stderr=output.read_text())


def chroot(stub: Stub) -> Path:
    """The directory that the jailer prepares."""
    return stub.folder.parent / "jail/firecracker/vm-1/root"


def test_it_prints_its_version(stub: Stub) -> None:
    assert subprocess.run([stub.jailer, "--version"], capture_output=True, check=True).stdout == b"Jailer v1.16.1\n\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "a_b"}, "Invalid instance ID: Invalid char (_) at position 1"),
        ({"id": "a" * 65}, "Invalid instance ID: Invalid len (65);  the length must be between 1 and 64"),
        ({"exec_file": "none"}, "Failed to canonicalize path none: No such file or directory (os error 2)"),
        ({"exec_file": "/"}, "/ is not a file"),
        ({"chroot_base_dir": "none"}, "Failed to canonicalize path none: No such file or directory (os error 2)"),
        ({"uid": "root"}, "Invalid uid: root"),
        ({"gid": "-1"}, "Invalid gid: -1"),
        ({"uid": str(1 << 32)}, f"Invalid uid: {1 << 32}"),
        ({"parent_cgroup": "/a"}, "Parent cgroup path is invalid. Path should not be absolute or contain '..' or '.'"),
        ({"cgroup_version": "x"}, "x is an invalid cgroup version specifier"),
        ({"resource_limit": "fsize"}, "Invalid format for resources limits: fsize"),
        ({"resource_limit": "cores=1"}, "Invalid resource argument: cores"),
        (
            {"resource_limit": "fsize=many"},
            "Invalid limit value for resource: many: invalid digit found in string",
        ),
        (
            {"nothing": "1"},
            "Failed to parse arguments: Found argument 'nothing' which wasn't expected, or isn't valid in this"
            " context.",
        ),
        ({"netns": "--x"}, "Failed to parse arguments: The argument 'netns' requires a value, but none was supplied."),
    ],
)  # fmt: skip
@pytest.mark.parametrize("jailer", ["stub", "real"])
def test_wrong_arguments_are_refused(stub: Stub, jailer: str, changes: dict[str, str], message: str) -> None:
    if jailer == "real":
        stub.jailer = binary("real", stub.folder)[0].with_name("jailer")
    ended = run(stub, **changes)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[0] == message
    assert list((stub.folder.parent / "jail").iterdir()) == []


def test_what_is_missing_is_named(stub: Stub) -> None:
    ended = subprocess.run([stub.jailer, "--id", "a"], capture_output=True, text=True, check=False)
    assert ended.stderr.startswith("Failed to parse arguments: Argument 'exec-file' required, but not found.\n")


def test_before_1_11_the_program_must_be_called_firecracker(stub: Stub) -> None:
    other = stub.folder / "vmm"
    other.write_bytes(b"")
    assert "Failed to exec into Firecracker:" in run(stub, program=other).stderr
    stub.configure(version="1.10.1")
    assert 'must contain "firecracker": vmm' in run(stub, program=other).stderr


@pytest.mark.anyio
async def test_the_vmm_runs_in_its_chroot_with_an_agent(stub: Stub) -> None:
    record = stub.folder.parent / "requests"
    stub.configure(record=str(record))
    ended = run(stub, "--new-pid-ns", "--", "--api-sock", "/api.sock", "--log-path", "/log")
    assert (ended.returncode, ended.stderr.count("Error")) == (0, 0)
    root = chroot(stub)
    pid = int((root / "firecracker.pid").read_text())
    assert not AS_ROOT or root.samefile(f"/proc/{pid}/root")
    (root / "kernel").write_bytes(b"no kernel")
    (root / "disk").write_bytes(bytes(4096))
    (root / "disk").chmod(0o666)
    descriptor = os.pidfd_open(pid)
    wait_for_api(root / "api.sock")
    vmm = Vmm(None, root, "1.16.1")
    try:
        vmm.ok("PUT", "/boot-source", BOOT | {"kernel_image_path": "/kernel"})
        vmm.ok("PUT", "/drives/disk", DISK | {"path_on_host": "/disk"})
        vmm.ok("PUT", "/vsock", VSOCK | {"uds_path": "/vsock"})
        vmm.ok("PUT", "/actions", START)
        assert vmm.call("GET", "/")[1]["id"] == "vm-1"
        assert read_record(record)[-1] == {"method": "GET", "path": "/", "body": None}
        if AS_ROOT:
            status = Path(f"/proc/{pid}/status").read_text()
            assert "Uid:\t4711\t4711\t4711\t4711\nGid:\t4712\t4712\t4712\t4712" in status
        client = AgentClient(connector(vmm))
        await client.connect(timeout_s=30)
        await client.setup(Identity("vm-1", "h", "0" * 32), env={"A": "1"})
        assert await output_of(client, "echo", "a", "b") == b"a b\n"
        await client.poweroff(grace_s=1)
        await client.close()
        assert select.select([descriptor], [], [], 30)[0], "the VMM still runs"
        assert "exit_code=0" in (root / "log").read_text()
    finally:
        vmm.close()
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        os.close(descriptor)


def test_the_chroot_is_private_and_has_devices(stub: Stub) -> None:
    stub.fail("jailer exec", "refuse")
    run(stub)
    root = chroot(stub)
    for name in ("", "dev", "dev/net", "run"):
        assert stat.S_IMODE((root / name).stat().st_mode) == 0o700
    assert {path.name for path in root.rglob("*") if not path.is_dir()} >= {"kvm", "tun", "urandom", "firecracker"}
    if AS_ROOT:
        assert {path.stat().st_uid for path in (root, *root.rglob("*")) if path.suffix != ".pid"} == {4711}


def test_a_second_jail_of_that_name_is_refused(stub: Stub) -> None:
    stub.fail("jailer exec", "refuse")
    run(stub)
    assert "Failed to create /dev/net/tun via mknod inside the jail: File exists (os error 17)" in run(stub).stderr


def test_descriptors_and_environment_are_not_passed_on(stub: Stub) -> None:
    seen = stub.folder / "firecracker-seen"
    seen.write_text("#!/bin/sh\nls -l /proc/self/fd >seen; env >>seen; echo $* >>seen\n")
    seen.chmod(0o755)
    (stub.folder.parent / "jail").mkdir()
    reader, writer = os.pipe()
    words = [word for pair in ARGUMENTS.items() for word in pair]
    argv = [stub.jailer, "--exec-file", str(seen), *words, "--", "--api-sock", "a b"]
    environment = {"SECRET": "1", "PATH": os.environ["PATH"]}
    subprocess.run(argv, cwd=stub.folder.parent, pass_fds=(writer,), env=environment, check=True)
    os.close(reader)
    os.close(writer)
    text = (stub.folder.parent / "jail/firecracker-seen/vm-1/root/seen").read_text()
    assert f" {writer} -> pipe" not in text
    assert "SECRET" not in text
    assert "--id vm-1 --start-time-us " in text
    assert text.endswith(" --api-sock a b\n")


@pytest.mark.parametrize("step", STEPS)
def test_it_fails_or_dies_at_any_step(stub: Stub, step: str) -> None:
    stub.configure(lifetime_s=20)
    stub.fail(f"jailer {step}", "refuse", message="no more")
    arguments = ("--new-pid-ns",) if step == "fork" else ()
    ended = run(stub, *arguments, "--", "--api-sock", "none/x")
    assert ended.returncode == 1
    assert "no more" in ended.stderr
    stub.recover()
    when = "before" if step == "exec" else "after"
    stub.fail(f"jailer {step}", "die", when=when, signal=9)
    assert run(stub, *arguments, "--", "--api-sock", "none/x", id="vm-2").returncode == -9
