"""Files of a real guest: whole, of any size and name, and nothing half done."""

import asyncio
import hashlib
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from squib import VM, AsyncVM, FileEventType, GuestDiskFull, NoSuchFile, NotAFile, TransferFailed, VMState
from squib.paths import Home
from tests.vm.conftest import engine_pids, wait_for_state

GROWTH_MIB = 50


@contextmanager
def bounded_memory(vm: VM, home: Home) -> Iterator[None]:
    """The client, the engine and the agent grow by less than `GROWTH_MIB` in the block."""
    pids = {"client": os.getpid(), "engine": engine_pids(home)[0]}
    before = {name: rss_mib(pid) for name, pid in pids.items()}
    peaks = dict(before)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            for name, pid in pids.items():
                peaks[name] = max(peaks[name], rss_mib(pid))

    watcher = threading.Thread(target=watch)
    agent_before = agent_rss_mib(vm, "VmRSS")
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    growth = {name: peaks[name] - before[name] for name in pids}
    growth["agent"] = agent_rss_mib(vm, "VmHWM") - agent_before
    print("growth in MiB:", {name: round(value, 1) for name, value in growth.items()})
    assert max(growth.values()) < GROWTH_MIB, growth


def rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def agent_rss_mib(vm: VM, field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", vm.files.read_text("/proc/1/status"))
    assert found
    return int(found[1]) / 1024


@pytest.mark.nested
def test_a_sparse_file_stays_sparse_and_keeps_its_attributes(shared_vm: VM, tmp_path: Path) -> None:
    source = tmp_path / "sparse"
    with source.open("wb") as file:
        file.write(b"x" * 4096)
        file.truncate(64 << 20)
    os.setxattr(source, "user.origin", b"here\xff")
    shared_vm.files.upload(source, "/root/sparse", keep_owner=True)
    shared_vm.files.upload(source, "/root/plain")
    kib = shared_vm.run("du -k /root/sparse /root/plain | cut -f1").output.split()
    assert max(map(int, kib)) <= 128
    for path, kept in (("/root/sparse", True), ("/root/plain", False)):
        shared_vm.files.download(path, tmp_path / "back", keep_owner=kept)
        assert (tmp_path / "back").stat().st_blocks * 512 <= 128 << 10
        assert sha256(tmp_path / "back") == sha256(source)
        assert os.listxattr(tmp_path / "back") == (["user.origin"] if kept else [])
    assert os.getxattr(source, "user.origin") == b"here\xff"


def random_file(path: Path, mib: int) -> str:
    """Write a file; its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(mib):
            data = os.urandom(1 << 20)
            digest.update(data)
            file.write(data)
    return digest.hexdigest()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def move_both_ways(vm: VM, home: Home, folder: Path, mib: int) -> None:
    digest = random_file(folder / "source", mib)
    with bounded_memory(vm, home):
        vm.files.upload(folder / "source", "/root/big")
        assert vm.run("sha256sum /root/big").stdout.split()[0] == digest
        vm.files.download("/root/big", folder / "back")
    assert sha256(folder / "back") == digest
    assert (folder / "back").stat().st_mtime_ns == (folder / "source").stat().st_mtime_ns
    vm.files.remove("/root/big")


def test_a_large_file_both_ways(shared_vm: VM, home: Home, tmp_path: Path) -> None:
    move_both_ways(shared_vm, home, tmp_path, 64)


# --- directories ---------------------------------------------------------------------------------------------------


def make_tree(root: Path, count: int) -> None:
    """Many small files with links, modes, times, and names of any bytes."""
    root.mkdir()
    for number in range(count):
        folder = root / f"d{number % 100}"
        folder.mkdir(exist_ok=True)
        path = folder / f"f{number}"
        path.write_bytes(b"%d\n" % number)
        path.chmod(0o600 | number % 0o100)
    for name in ("a b", "new\nline", "\udcff\udcfe", "é", "-rf", "*", "a\\b", "n" * 255, "d0/\udc80"):
        (root / name).write_bytes(os.fsencode(name))
    (root / "empty").mkdir(mode=0o711)
    (root / "link").symlink_to("d1/f1")
    (root / "broken").symlink_to("no\udcffwhere")
    (root / "hard").hardlink_to(root / "d2" / "f2")
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        os.utime(path, ns=(10**18 + number,) * 2, follow_symlinks=False)
    os.utime(root, ns=(10**18 - 1,) * 2)


def described(root: Path) -> dict[str, tuple[object, ...]]:
    """All of a tree that a copy keeps."""
    tree: dict[str, tuple[object, ...]] = {}
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        if path.is_symlink():
            tree[str(path.relative_to(root))] = (path.readlink(), status.st_mtime_ns)
        else:
            content = None if path.is_dir() else path.read_bytes()
            links = None if path.is_dir() else status.st_nlink
            tree[str(path.relative_to(root))] = (status.st_mode, status.st_mtime_ns, content, links)
    return tree


def test_ten_thousand_small_files_both_ways(shared_vm: VM, home: Home, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", 10_000)
    expected = described(tmp_path / "tree")
    with bounded_memory(shared_vm, home):
        shared_vm.files.upload(tmp_path / "tree", "/root/tree")
        assert shared_vm.run("cd /root/tree && find . -printf x | wc -c").stdout.strip() == str(len(expected))
        assert shared_vm.run(r"stat -c '%a %h %Y' /root/tree/d2/f2; readlink /root/tree/link").stdout.split() == [
            "602", "2", "1000000000", "d1/f1",
        ]  # fmt: skip
        shared_vm.files.download("/root/tree", tmp_path / "back")
    assert described(tmp_path / "back") == expected
    shared_vm.files.remove("/root/tree", recursive=True)


@pytest.mark.nested
def test_owners_are_kept_or_chosen(shared_vm: VM, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"x")
    (tmp_path / "f").write_bytes(b"x")
    files = shared_vm.files
    sources = [tmp_path / "d", tmp_path / "f"]
    files.mkdir("/root/o")
    files.upload(sources, "/root/o")
    owners = "stat -c %u:%g /root/o/d /root/o/d/f /root/o/f"
    assert shared_vm.run(owners).stdout.split() == ["0:0"] * 3
    files.remove("/root/o/d", recursive=True)  # a directory that is there keeps its owner and mode
    files.upload(sources, "/root/o", owner="nobody:adm")
    assert shared_vm.run(owners).stdout.split() == ["65534:4"] * 3
    if os.geteuid() == 0:
        for path in (tmp_path / "d", tmp_path / "d" / "f", tmp_path / "f"):
            os.chown(path, 12, 34)
        files.remove("/root/o/d", recursive=True)
        files.upload(sources, "/root/o", keep_owner=True)
        assert shared_vm.run(owners).stdout.split() == ["12:34"] * 3
        (tmp_path / "back").mkdir()
        files.download(["/root/o/d", "/root/o/f"], tmp_path / "back", keep_owner=True)
        for name in ("d", "d/f", "f"):
            status = (tmp_path / "back" / name).stat()
            assert (status.st_uid, status.st_gid) == (12, 34)
    files.remove("/root/o", recursive=True)


def test_what_goes_into_a_directory_leaves_the_directory_as_it_is(shared_vm: VM, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(mode=0o700)
    (tmp_path / "d" / "f").write_bytes(b"x")
    shared_vm.files.upload(f"{tmp_path}/d/.", "/tmp")
    info = shared_vm.files.stat("/tmp")
    assert (info.mode, shared_vm.files.read("/tmp/f")) == (0o1777, b"x")


# --- what breaks off -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_killed_client_leaves_nothing_in_the_guest(shared_vm: VM, tmp_path: Path, kind: str) -> None:
    (tmp_path / "d").mkdir()
    random_file(tmp_path / "d" / "f", 64)
    source = tmp_path / "d" / "f" if kind == "file" else tmp_path / "d"
    shared_vm.files.mkdir("/root/k")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            VM.from_id(shared_vm.vm_id).files.upload(
                source, "/root/k/new", on_progress=lambda step: os.write(write, b"x") and None if step.done else None
            )
        finally:
            os._exit(1)
    os.close(write)
    assert os.read(read, 1) == b"x"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read)
    gone = 'for i in $(seq 200); do [ -z "$(ls -A /root/k)" ] && exit 0; sleep 0.02; done; ls -laR /root/k; exit 1'
    assert shared_vm.run(gone).stdout == ""
    shared_vm.files.remove("/root/k")


def test_a_full_disk_in_the_guest_is_told_and_leaves_nothing(shared_vm: VM, tmp_path: Path) -> None:
    files = shared_vm.files
    assert shared_vm.run("mkdir /mnt/small && mount -t tmpfs -o size=8m none /mnt/small").ok
    files.write("/mnt/small/kept", b"old")
    (tmp_path / "d").mkdir()
    random_file(tmp_path / "d" / "f", 16)

    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * (1 << 18)  # zeros would become holes

    for work in (
        lambda: files.upload(tmp_path / "d" / "f", "/mnt/small/kept"),
        lambda: files.upload(tmp_path / "d", "/mnt/small/d"),
        lambda: files.write("/mnt/small/endless", endless()),
    ):
        with pytest.raises(GuestDiskFull):
            work()
        assert [info.name for info in files.list("/mnt/small")] == ["kept"]
    assert files.read("/mnt/small/kept") == b"old"
    assert shared_vm.run("umount /mnt/small && rmdir /mnt/small").ok


def test_a_vm_that_dies_ends_a_download(home: Home, tmp_path: Path) -> None:
    with VM() as vm:
        vm.run("truncate -s 4G /root/big", check=True)
        pid = vm.info.pid
        assert pid

        def kill(step: object) -> None:
            if getattr(step, "done", 0):
                os.kill(pid, signal.SIGKILL)

        with pytest.raises(TransferFailed, match="was interrupted"):
            vm.files.download("/root/big", tmp_path / "big", on_progress=kill)
        assert os.listdir(tmp_path) == []  # noqa: PTH208


@pytest.mark.nested
def test_a_vm_that_dies_has_its_files_whole(home: Home, tmp_path: Path) -> None:
    content = {"large": os.urandom(20 << 20), "small": b"small"}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    with VM() as vm:
        vm.files.mkdir("/root/there")
        vm.run("sync", check=True)
        for name in content:
            vm.files.upload(tmp_path / name, f"/root/{name}")
        vm.files.upload(tmp_path, "/root/new")
        vm.files.upload(f"{tmp_path}/.", "/root/there")
        vm.run(
            "touch other && sync other", cwd="/root", check=True
        )  # it writes the names of the others to the disk too
        assert vm.info.pid
        os.kill(vm.info.pid, signal.SIGKILL)
        wait_for_state(vm, VMState.ERROR, VMState.STOPPED, within_s=20)
        vm.start()
        for name, data in content.items():
            for directory in ("/root", "/root/new", "/root/there"):
                assert vm.files.read(f"{directory}/{name}") == data


# --- the rest of the interface -------------------------------------------------------------------------------------


@pytest.mark.nested
def test_names_may_hold_any_bytes(shared_vm: VM) -> None:
    files = shared_vm.files
    for name in ("a b", "new\nline", "\udcff\udcfe", "é", "a+b%2F&path=x#?;=", "-rf", "n" * 255):
        path = f"/root/names/{name}"
        assert files.write(path, b"content", parents=True).name == name
        assert files.read(path) == b"content"
        assert [info.name for info in files.list("/root/names")] == [name]
        assert shared_vm.run(["cat", path]).stdout_bytes == b"content"
        files.rename(path, "/root/names/plain")
        files.remove("/root/names/plain")
    files.remove("/root/names")


def test_files_of_the_kernel_are_read(shared_vm: VM) -> None:
    assert shared_vm.files.read_text("/proc/version").startswith("Linux version")
    assert shared_vm.files.read_text("/sys/class/net/lo/address") == "00:00:00:00:00:00\n"
    with pytest.raises(NotAFile):
        shared_vm.files.read("/dev/null")
    with pytest.raises(NoSuchFile):
        shared_vm.files.read("/nosuch")


def test_a_directory_of_the_image_can_be_renamed(shared_vm: VM) -> None:
    before = sorted(info.name for info in shared_vm.files.list("/usr/share/zoneinfo"))
    shared_vm.files.rename("/usr/share/zoneinfo", "/root/zones")
    assert not shared_vm.files.exists("/usr/share/zoneinfo")
    assert sorted(info.name for info in shared_vm.files.list("/root/zones")) == before
    shared_vm.files.rename("/root/zones", "/usr/share/zoneinfo")
    assert sorted(info.name for info in shared_vm.files.list("/usr/share/zoneinfo")) == before


def test_descriptions_are_those_of_the_guest(shared_vm: VM) -> None:
    info = shared_vm.files.stat("/etc/passwd")
    size, mtime = shared_vm.run(["stat", "-c", "%s %Y", "/etc/passwd"]).stdout.split()
    assert (info.size, info.mtime_ns // 10**9) == (int(size), int(mtime))
    assert (info.user, info.group, info.mode) == ("root", "root", 0o644)
    assert shared_vm.files.stat("/bin", follow_symlinks=False).link_target == "usr/bin"
    assert {each.name for each in shared_vm.files.list("/etc")} == set(
        shared_vm.run(["ls", "-A", "/etc"]).stdout.split()
    )


def test_file_objects_of_a_guest(shared_vm: VM) -> None:
    with shared_vm.files.open("/root/lines", "w") as file:
        file.writelines(f"{number}\n" for number in range(100_000))
    assert shared_vm.run("tail -n 1 /root/lines; wc -l < /root/lines").stdout.split() == ["99999", "100000"]
    with shared_vm.files.open("/root/lines", "rb") as file:
        file.seek(-6, os.SEEK_END)
        assert file.read() == b"99999\n"
    shared_vm.files.remove("/root/lines")


def test_a_watch_sees_what_commands_do(shared_vm: VM) -> None:
    shared_vm.files.mkdir("/root/w")
    with shared_vm.files.watch("/root/w", recursive=True) as events:
        shared_vm.run("cd /root/w; mkdir d; echo x > d/f; mv d/f g; rm g", check=True)
        seen = set()
        for event in events:
            seen.add((event.type, event.path, event.source))
            if event.type is FileEventType.DELETED:
                break
    assert (FileEventType.CREATED, "/root/w/d", None) in seen
    assert (FileEventType.MOVED, "/root/w/g", "/root/w/d/f") in seen
    assert (FileEventType.DELETED, "/root/w/g", None) in seen
    shared_vm.files.remove("/root/w", recursive=True)


def test_transfers_and_commands_at_once(shared_vm: VM) -> None:
    data = os.urandom(4 << 20)

    async def main() -> None:
        vm = await AsyncVM.from_id(shared_vm.vm_id)

        async def one(number: int) -> None:
            path = f"/root/at-once-{number}"
            await vm.files.write(path, data)
            assert await vm.files.read(path) == data
            assert (await vm.run(["rm", path])).ok

        await asyncio.gather(*map(one, range(8)))
        await vm.close()

    asyncio.run(main())
