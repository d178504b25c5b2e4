"""The host's side of an escape, run as the user that the engine would be: root, or anyone. Prints JSON.

``prison.py escape MODE ATTEMPT …``: start `tests.fakes.escape` as a VMM, seal it, and print what it could do. MODE is
``best`` or ``none``: as on a host that allows no namespaces.
``prison.py boot FOLDER``: boot a VM from the ``kernel``, ``initramfs``, ``base`` and ``overlay`` in FOLDER on real
QEMU, run a command in it, and print what QEMU may do.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from squib.drivers.registry import find_drivers
from squib.guest.agent import AgentClient, Identity
from squib.host import jail, processes
from squib.host.jail import Credentials, JailMode
from squib.host.locks import FileLock
from squib.host.processes import ProcessIdentity
from squib.models import ExecRequest
from squib.paths import Home, VMPaths, process_lock
from tests.fakes.machines import machine_spec

VMM = Credentials(0x7700_0002, 0x7700_0002)
INTERPRETER = "/usr/bin/python3"
"""Not this one, which a VMM's user may not be allowed to execute."""
CAPABILITIES = ("Inh", "Prm", "Eff", "Bnd", "Amb")
NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "user")


def status(pid: int) -> dict[str, list[str]]:
    """``/proc/PID/status``: the values of each field."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: values.split() for name, _, values in (line.partition(":") for line in lines)}


def shared_namespaces(pid: int) -> list[str]:
    """The kinds of namespaces that a process shares with this one."""
    return [
        kind
        for kind in NAMESPACES
        if os.readlink(f"/proc/{pid}/ns/{kind}") == os.readlink(f"/proc/self/ns/{kind}")  # noqa: PTH115
    ]


def inspect(pid: int) -> dict[str, object]:
    """Describe a VMM as the host sees it."""
    network = Path(f"/proc/{pid}/net/dev").read_text().splitlines()
    threads = [status(int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()]
    return {
        "status": status(pid),
        "seccomp of all threads": sorted({thread["Seccomp"][0] for thread in threads}),
        "capabilities of all threads": sorted({thread[f"Cap{kind}"][0] for thread in threads for kind in CAPABILITIES}),
        "shared namespaces": shared_namespaces(pid),
        "network devices": [line.split(":")[0].strip() for line in network if ":" in line],
        "root": sorted(os.listdir(f"/proc/{pid}/root")),  # noqa: PTH208
        "open": sorted(os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()),  # noqa: PTH115
    }


async def boot(folder: Path) -> dict[str, object]:
    """Boot a VM and run a command in it."""
    driver = (await find_drivers(Home(folder))).by_name["qemu"]
    found = await jail.probe_jail()
    paths = VMPaths(folder / "vm")
    paths.qemu.root.mkdir(parents=True)
    spec = machine_spec("jail-test", **{name: folder / name for name in ("kernel", "initramfs", "base", "overlay")})
    credentials = Credentials(VMM.uid, VMM.gid, driver.groups) if os.geteuid() == 0 else None
    identity = ProcessIdentity(process_lock(paths.root, "vmm"))
    machine = await driver.launch(spec, paths.qemu.root, identity, credentials, lambda pid: None)
    agent = AgentClient(machine.connect_agent)
    try:
        await agent.connect(timeout_s=60)
        await agent.setup(Identity("vm-1", "prison", "0" * 32), env={})
        async with await agent.exec(ExecRequest(argv=["echo", "from the guest"])) as response:
            said = await response.read()
        result = inspect(machine.pid) | {"holders": processes.find(identity) == [machine.pid]}
    finally:
        await agent.close()
        await machine.kill()
    return result | {"said": b"from the guest" in said, "mode": found.mode, "accelerator": driver.accelerator}


async def escape(found: jail.Jail, attempts: list[str]) -> dict[str, object]:
    """Let the attacker try everything, or only ``attempts``."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        secret = folder / "secret"
        secret.write_text("secret")
        credentials = VMM if os.geteuid() == 0 else None
        if credentials:
            os.chown(secret, credentials.uid, credentials.gid)
            folder.chmod(0o755)  # its own file, at a path that it could reach
        user = {"user": credentials.uid, "group": credentials.gid} if credentials else {}
        with (
            subprocess.Popen(["sleep", "60"], **user) as victim,  # type: ignore[call-overload]  # noqa: ASYNC220
            socket.create_server(("127.0.0.1", 0)) as tcp,
            socket.socket(socket.AF_UNIX) as abstract,
            socket.socket(socket.AF_UNIX) as by_path,
        ):
            abstract.bind(f"\0squib-test-{os.getpid()}")
            abstract.listen()
            by_path.bind(str(folder / "sock"))
            by_path.listen()
            targets = {
                "attempts": attempts,
                "secret": str(secret),
                "port": tcp.getsockname()[1],
                "abstract": f"squib-test-{os.getpid()}",
                "socket": str(folder / "sock"),
                "victim": victim.pid,
            }
            try:
                result = await imprison(found, credentials, folder, targets)
            finally:
                victim_lives = victim.poll() is None
                victim.kill()
    return result | {"mode": found.mode, "victim lives": victim_lives}


async def imprison(
    found: jail.Jail, credentials: Credentials | None, folder: Path, targets: dict[str, object]
) -> dict[str, object]:
    code = Path(__file__).with_name("escape.py").read_text()
    ours, theirs = socket.socketpair()
    identity = ProcessIdentity(folder / "vmm.lock")
    with ours, FileLock(identity.lock_path) as lock:
        assert lock.try_acquire()
        with theirs:
            fd = theirs.fileno()
            plan = jail.plan(found, [INTERPRETER, "-I", "-S", "-c", code, str(fd)], credentials=credentials)
            confined = await jail.start(plan, lock=lock, pass_fds=(fd,), log_path=folder / "log")
        pid = confined.process.pid
        try:
            ours.settimeout(20)
            assert ours.recv(100) == b"ready\n", (folder / "log").read_text()
            before = sorted(os.listdir(f"/proc/{pid}/root"))  # noqa: PTH208
            await confined.seal()
            outside = inspect(pid) | {
                "root before": before,
                "descriptors": sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd")),  # noqa: PTH208
                "expected descriptors": sorted([0, 1, 2, fd, lock.fileno()]),
                "holders": processes.find(identity) == [pid],
            }
            ours.sendall(json.dumps(targets).encode())
            report = json.loads(ours.recv(1 << 20) or json.dumps((folder / "log").read_text()))
        finally:
            await confined.kill()
    return {"report": report, **outside}


async def main(action: str, *arguments: str) -> None:
    if action == "boot":
        result = await boot(Path(arguments[0]))
    else:
        mode, *attempts = arguments
        result = await escape(await jail.probe_jail() if mode == "best" else jail.Jail(JailMode.NONE), attempts)
    print(json.dumps(result))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
