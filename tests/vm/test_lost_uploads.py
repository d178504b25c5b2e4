"""`kill -9` of the VMM during uploads and right after: what was acknowledged is there, and nothing else is left."""

import contextlib
import itertools
import os
import random
import signal
import threading
import time
from pathlib import Path

from squib import VM, SquibError, VMState
from squib.paths import Home
from tests.vm.conftest import SEED, wait_for_state

ROUNDS = 4
FILES = 30
FIND = "find / -xdev -name '.squib-*'"


def kill(vm: VM) -> None:
    pid = vm.refresh().pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    wait_for_state(vm, VMState.STOPPED, VMState.ERROR, within_s=20)


def test_kill_9_of_the_vmm_during_uploads(vm: VM, home: Home, tmp_path: Path) -> None:
    moments = random.Random(SEED)
    source = tmp_path / "tree"
    for n in range(FILES):
        (source / f"d{n % 3}").mkdir(parents=True, exist_ok=True)
        (source / f"d{n % 3}" / f"f{n}").write_bytes(b"%d\n" % n * 1000)
    done: list[str] = []

    def upload(kind: str) -> None:
        with contextlib.suppress(SquibError):
            for n in itertools.count():
                name = f"/srv/{kind}-{n}"
                match kind:
                    case "new":
                        vm.files.upload(source, name)
                    case "merged":
                        vm.files.upload(source, "/srv/merged")
                        name = "/srv/merged/tree"
                    case "file":
                        vm.files.write(name, b"content" * 10_000)
                done.append(name)

    def large() -> None:
        with contextlib.suppress(SquibError):
            vm.files.write("/srv/large", itertools.repeat(bytes(1 << 18)))

    vm.files.mkdir("/srv/merged")
    for _ in range(ROUNDS):
        threads = [threading.Thread(target=upload, args=(kind,)) for kind in ("new", "merged", "file")]
        threads.append(threading.Thread(target=large))
        for thread in threads:
            thread.start()
        time.sleep(moments.uniform(1, 4))
        kill(vm)
        for thread in threads:
            thread.join()
        vm.start()
        assert vm.run(FIND).output == "", f"seed {SEED}"
        for path in done:
            if path.startswith("/srv/file"):
                assert vm.files.stat(path).size == 70_000, f"seed {SEED}"
                continue
            sizes = {info.name: info.size for n in range(3) for info in vm.files.list(f"{path}/d{n}")}
            assert sizes == {f"f{n}": 1000 * len(f"{n}\n") for n in range(FILES)}, f"{path}, seed {SEED}"
        done.clear()
        vm.run("rm -rf /srv/*; mkdir /srv/merged", check=True)


def test_an_upload_survives_a_kill_right_after_it(vm: VM, home: Home, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("content")
    vm.files.upload(tmp_path / "tree", "/srv/tree")
    vm.files.write("/srv/new/file", "content", parents=True)
    kill(vm)
    vm.start()
    assert vm.files.read_text("/srv/tree/file") == vm.files.read_text("/srv/new/file") == "content"
    assert vm.run(FIND).output == ""
