"""``squib upload``, ``download`` and ``cp`` as a person uses them, with real VMs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from squib import VM
from tests.fakes.trees import snapshot
from tests.vm.test_cli import ok, squib

ODD_NAMES = ("a b", "new\nline", "\udcff\udcfe", "é", "-rf", "...", "n" * 255, "*")


@pytest.fixture
def folder(shared_vm: VM) -> Iterator[str]:
    """An empty directory of the guest."""
    shared_vm.run("mkdir /root/copy", check=True)
    yield "/root/copy"
    shared_vm.run("rm -rf /root/copy", check=True)


def _grow(root: Path, files: int) -> None:
    for number in range(files):
        place = root / f"d{number % 20}"
        place.mkdir(parents=True, exist_ok=True)
        file = place / f"f{number}"
        file.write_bytes(os.urandom(number))
        file.chmod(0o600 | number % 0o200)
        os.utime(file, ns=(0, 1_700_000_000_123_456_789 + number))
    (root / "odd").mkdir()
    for name in ODD_NAMES:
        (root / "odd" / name).write_bytes(os.fsencode(name))
    (root / "d0" / "link").symlink_to("../d1/f1")
    (root / "d0" / "nowhere").symlink_to("missing")
    (root / "hard").hardlink_to(root / "d0" / "f0")
    (root / "empty").mkdir(mode=0o711)
    os.utime(root / "odd", ns=(0, -1_500_000_001))


def test_a_tree_of_a_thousand_files_comes_back_as_it_was(shared_vm: VM, folder: str, tmp_path: Path) -> None:
    vm = shared_vm.vm_id
    _grow(tmp_path / "tree", 1000)
    told = json.loads(ok("--json", "upload", vm, str(tmp_path / "tree"), folder))
    assert told["entries"] == len(snapshot(tmp_path / "tree"))
    assert shared_vm.run(f"find {folder}/tree | wc -l").stdout.strip() != "0"
    assert shared_vm.run(f"stat -c '%U %a' {folder}/tree/d1/f1").stdout == "root 601\n"
    down = json.loads(ok("--json", "download", vm, f"{folder}/tree", str(tmp_path / "back")))
    assert (down["entries"], down["bytes"]) == (told["entries"], told["bytes"])
    assert snapshot(tmp_path / "back") == snapshot(tmp_path / "tree")
    assert (tmp_path / "back" / "hard").samefile(tmp_path / "back" / "d0" / "f0")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_cp_takes_names_of_any_bytes(shared_vm: VM, folder: str, tmp_path: Path, name: str) -> None:
    vm = shared_vm.vm_id
    (tmp_path / name).write_bytes(b"data")
    ok("cp", str(tmp_path / name), f"{vm}:{folder}/")
    assert shared_vm.files.read(f"{folder}/{name}") == b"data"
    ok("cp", f"{vm}:{folder}/{name}", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == b"data"


def test_pipes_are_copied(shared_vm: VM, folder: str) -> None:
    vm, data = shared_vm.vm_id, os.urandom(3 << 20)
    ok("upload", "--mode", "640", vm, "-", f"{folder}/f", input=data)
    assert shared_vm.run(f"stat -c %a {folder}/f").stdout == "640\n"
    done = squib("download", vm, f"{folder}/f", "-")
    assert (done.returncode, done.stdout) == (0, data)
    refused = squib("download", vm, folder, "-")
    assert (refused.returncode, refused.stdout) == (1, b"") and b"only a file" in refused.stderr


def test_owners_and_modes_are_chosen_or_kept(shared_vm: VM, folder: str, tmp_path: Path) -> None:
    vm = shared_vm.vm_id
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "f").write_bytes(b"data")
    ok("upload", "--owner", "daemon:adm", "--mode", "0604", vm, str(tree), str(tree / "f"), folder)
    owned = shared_vm.run(f"cd {folder} && stat -c '%U:%G %a' f tree/f tree").stdout.splitlines()
    assert owned[0] == "daemon:adm 604" and {line.split()[0] for line in owned} == {"daemon:adm"}
    if os.geteuid() == 0:
        os.chown(tree / "f", 4711, 4712)
        ok("cp", "-a", str(tree), f"{vm}:{folder}/kept")
        assert shared_vm.run(f"stat -c %u:%g {folder}/kept/f").stdout == "4711:4712\n"
        ok("cp", "-a", f"{vm}:{folder}/kept", str(tmp_path / "back"))
        assert ((tmp_path / "back" / "f").stat().st_uid, (tmp_path / "back" / "f").stat().st_gid) == (4711, 4712)
    refused = squib("upload", "--owner", "nobody-here", vm, str(tree / "f"), f"{folder}/new")
    assert refused.returncode != 0 and b"nobody-here" in refused.stderr
    assert not shared_vm.files.exists(f"{folder}/new")


def test_links_and_devices_of_a_guest_are_refused(shared_vm: VM, folder: str, tmp_path: Path) -> None:
    vm = shared_vm.vm_id
    shared_vm.run(
        f"cd {folder} && mkdir a b c && ln -s /etc/passwd a/l && mknod b/null c 1 3 && mkfifo c/p", check=True
    )
    for name, said in (("a", "leads out of the directory"), ("b", "character device"), ("c", "FIFO")):
        ended = squib("download", vm, f"{folder}/{name}", str(tmp_path / "new"))
        assert ended.returncode == 1 and said in ended.stderr.decode()
        assert list(tmp_path.iterdir()) == []
    ok("download", "--unsafe-links", vm, f"{folder}/a", str(tmp_path / "new"))
    assert (tmp_path / "new" / "l").readlink() == Path("/etc/passwd")


def test_cp_from_one_vm_to_another(shared_vm: VM, vm: VM, folder: str, tmp_path: Path) -> None:
    _grow(tmp_path / "tree", 50)
    one, other = shared_vm.vm_id, vm.vm_id
    ok("cp", str(tmp_path / "tree"), f"{one}:{folder}/")
    told = json.loads(ok("--json", "cp", f"{one}:{folder}/tree", f"{one}:{folder}/tree/d1/f1", f"{other}:/root"))
    assert told["entries"] == len(snapshot(tmp_path / "tree")) + 1
    ok("download", other, "/root/tree", str(tmp_path / "back"))
    assert snapshot(tmp_path / "back") == snapshot(tmp_path / "tree")
    assert vm.files.stat("/root/f1").mtime_ns == (tmp_path / "tree/d1/f1").stat().st_mtime_ns


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_client_that_is_ended_leaves_nothing_in_the_guest(
    shared_vm: VM, folder: str, tmp_path: Path, kind: str, number: int
) -> None:
    """The file is so large that the copy cannot have come to its end. It has no zeros, which would become holes."""
    (tmp_path / "d").mkdir()
    with (tmp_path / "d" / "f").open("wb") as file:
        for _ in range(512):
            file.write(b"x" * (1 << 20))
    source = tmp_path / "d" / "f" if kind == "file" else tmp_path / "d"
    client = subprocess.Popen([sys.executable, "-m", "squib", "upload", shared_vm.vm_id, str(source), f"{folder}/new"])
    begun = (
        f"for i in $(seq 500); do du -s {folder} | grep -q '^[0-9][0-9][0-9][0-9]' && exit 0; sleep 0.02; done; exit 1"
    )
    assert shared_vm.run(begun).exit_code == 0
    client.send_signal(number)
    assert client.wait(timeout=20) == (128 + number if number != signal.SIGKILL else -number)
    gone = f'for i in $(seq 200); do [ -z "$(ls -A {folder})" ] && exit 0; sleep 0.02; done; ls -laR {folder}; exit 1'
    assert shared_vm.run(gone).stdout == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_client_that_is_ended_leaves_nothing_half_written_here(
    shared_vm: VM, folder: str, tmp_path: Path, kind: str, number: int
) -> None:
    """SIGKILL leaves a file with a temporary name. The target's name is only given to a complete file."""
    make = f"mkdir {folder}/d && head -c 200M /dev/zero | tr '\\0' x > {folder}/d/f"  # zeros would become holes
    shared_vm.run(make, check=True)
    source = f"{folder}/d/f" if kind == "file" else f"{folder}/d"
    client = subprocess.Popen(
        [sys.executable, "-m", "squib", "download", shared_vm.vm_id, source, str(tmp_path / "new")]
    )
    while not any(path.is_file() and path.stat().st_size for path in tmp_path.rglob("*")):
        assert client.poll() is None
        time.sleep(0.01)
    client.send_signal(number)
    assert client.wait(timeout=20) == (128 + number if number != signal.SIGKILL else -number)
    left = [path.name for path in tmp_path.iterdir()]
    assert left == [] or (number == signal.SIGKILL and left[0].startswith(".squib-"))


def test_who_does_not_read_on_ends_a_download(shared_vm: VM, folder: str) -> None:
    shared_vm.run(f"truncate -s 5G {folder}/f", check=True)
    command = [sys.executable, "-m", "squib", "download", shared_vm.vm_id, f"{folder}/f", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as client:
        assert client.stdout
        assert client.stdout.read(1000) == bytes(1000)
        client.stdout.close()
        assert client.wait(timeout=20) == 128 + signal.SIGPIPE
