"""Run the marked tests where KVM works, on QEMU and on Firecracker.

If this host's KVM works, they run here. Otherwise squib boots a nested VM, installs itself in it, and runs them there.
``SQUIB_TEST_FIRECRACKER=DIR`` names a directory with ``firecracker`` and ``jailer``; without it Firecracker is skipped.
``SQUIB_DRIVER=qemu`` or ``firecracker`` runs them on that one only.
Arguments replace the selection of tests: ``python -m tests.nested tests/vm/test_exec.py -x``.
``python -m tests.nested bench.startup`` runs that benchmark instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from squib import VM, SquibError
from squib.host.probe import probe_kvm
from squib.images.store import ImageStore
from squib.kernels.catalog import KernelStore
from squib.paths import Home
from tests.nested.image import ROOT, SITE, ensure_image, pip_install

Run = Callable[[list[str], dict[str, str]], int]
"""Run Python with arguments and additional environment variables; return its exit status."""

FIRECRACKER = "SQUIB_TEST_FIRECRACKER"
BENCH = "bench.startup"
TESTS = ["tests/contract/drivers", "tests/vm", "-m", "nested"]
PYTEST = ["-m", "pytest", "-v", "--durations=10"]
PROBE = "import asyncio, sys; from squib.host.probe import probe_kvm; kvm = asyncio.run(probe_kvm()); "
IMAGES = ("base", "python3.13")
GUEST_PROJECT, GUEST_HOME, GUEST_FIRECRACKER = "/root/squib", "/root/.squib", "/root/firecracker"
MEMORY_MIB = 5 * 1024
BOOT_TIMEOUT_S = 180.0
CONSOLE_BYTES = 8192
PATIENCE = "10"
"""The factor for time limits in the nested VM (`tests.vm.conftest.PATIENCE`)."""


def main(arguments: list[str]) -> int:
    """Run the tests on each driver, or the benchmark; return 0 if all passed."""
    firecracker = os.environ.get(FIRECRACKER)
    only = os.environ.pop("SQUIB_DRIVER", "")  # it is not for the nested VM itself
    summary = []
    with here() if asyncio.run(probe_kvm()).usable else nested_vm(firecracker) as run:
        if arguments[:1] == [BENCH]:
            return run(["-m", *arguments, "--boot-timeout", f"{BOOT_TIMEOUT_S:g}"], {})
        for driver in [only] if only else ["qemu", "firecracker"]:
            if driver == "firecracker" and not firecracker:
                summary.append(f"{driver}: SKIPPED, no test ran: set {FIRECRACKER} to a directory with its programs")
                continue
            start = time.monotonic()
            status = run([*PYTEST, *(arguments or TESTS)], {"SQUIB_DRIVER": driver})
            result = "passed" if status == 0 else f"FAILED, pytest ended with status {status}"
            summary.append(f"{driver}: {result} after {time.monotonic() - start:.0f} s")
    print("", *summary, sep="\n")
    return int(any("FAILED" in line for line in summary))


@contextlib.contextmanager
def here() -> Iterator[Run]:
    """Run the tests on this host."""
    yield lambda arguments, env: subprocess.call([sys.executable, *arguments], cwd=ROOT, env=os.environ | env)


@contextlib.contextmanager
def nested_vm(firecracker: str | None) -> Iterator[Run]:
    """Run the tests in a VM whose KVM works."""
    home = Home.from_environment()
    rootfs = ensure_image(home)
    step("boot the VM")
    # One CPU: QEMU before 8.1 makes a guest with several panic when KVM patches its kernel (docs/nested.md).
    # A periodic tick: QEMU can lose a timer interrupt of a CPU that runs VMs, and a one-shot timer then stands still.
    vm = VM(rootfs_path=rootfs, nested=True, vcpu_count=1, mem_size_mib=MEMORY_MIB, boot_args="nohz=off highres=off")
    with contextlib.closing(vm.start(BOOT_TIMEOUT_S, bound=True)):

        def run(arguments: list[str], env: dict[str, str]) -> int:
            command, env = ["python3", *arguments], env | {"SQUIB_TEST_PATIENCE": PATIENCE}
            return vm.run(command, cwd=GUEST_PROJECT, env=env, on_stdout=show, on_stderr=show, max_output=0).exit_code

        step("install squib, its cache and its tests in the VM")
        install(vm, home, firecracker)
        if run(["-c", PROBE + "print(kvm.reason); sys.exit(not kvm.usable)"], {}) != 0:
            sys.exit("KVM does not work in the VM")
        step("run the tests")
        try:
            yield run
        except SquibError:
            show(vm.logs()[-CONSOLE_BYTES:])  # the VM's own console says more
            raise


def install(vm: VM, home: Home, firecracker: str | None) -> None:
    """Install squib, its tests, its kernel and its images, and Firecracker."""
    with tempfile.TemporaryDirectory() as scratch:
        pip_install(Path(scratch), ["--no-deps", "--no-build-isolation", str(ROOT)])
        vm.files.upload(list(Path(scratch).iterdir()), SITE)
    for name in ("bench", "hatch_build.py", "tests", "pyproject.toml"):
        vm.files.upload(ROOT / name, f"{GUEST_PROJECT}/{name}")
    guest = Home(Path(GUEST_HOME))
    cached = [(asyncio.run(ImageStore(home).ensure(name)).path.parent, guest.images, name) for name in IMAGES]
    for folder, target, name in (*cached, (KernelStore(home).get().path.parent, guest.kernels, "debian-cloud")):
        vm.files.upload(folder, target / folder.name)
        vm.files.upload(folder.parent / "names" / f"{name}.json", target / "names" / f"{name}.json")
    vm.run(["python3", "-m", "compileall", "-q", f"{SITE}/squib", f"{GUEST_PROJECT}/tests"], check=True)
    if firecracker:
        for name in ("firecracker", "jailer"):
            vm.files.upload(Path(firecracker, name), f"{GUEST_FIRECRACKER}/{name}")
        command = ["python3", "-m", "squib", "install", "firecracker", "--from", GUEST_FIRECRACKER]
        print(vm.run(command, check=True).stdout)


def show(output: bytes) -> None:
    """Print output of the VM."""
    sys.stdout.buffer.write(output)
    sys.stdout.buffer.flush()


def step(text: str) -> None:
    """Print what is done next."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
