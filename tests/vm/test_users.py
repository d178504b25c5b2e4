"""Files and commands as a user of a real guest: the guest's kernel decides, and the VM's defaults are stored."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from squib import VM, NoSuchFile, PermissionDenied, SquibError
from squib.paths import Home

ADD_USER = (
    "echo 'alice:x:1000:1000::/home/alice:/bin/sh' >> /etc/passwd && echo 'alice:x:1000:' >> /etc/group "
    "&& echo 'team:x:2000:alice' >> /etc/group && mkdir -p /home/alice && chown 1000:1000 /home/alice"
)


@pytest.fixture(scope="module")
def vm(home: Home) -> Iterator[VM]:
    with VM() as vm:
        vm.run(ADD_USER, check=True)
        yield vm


def test_a_users_files(vm: VM, tmp_path: Path) -> None:
    assert (vm.home(), vm.home("alice")) == ("/root", "/home/alice")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("x")
    vm.files.write("notes/today", "x", user="alice")
    vm.files.upload(tmp_path / "tree", "tree", user="alice")
    owners = vm.run("find /home/alice -mindepth 1 -printf '%u:%g %p\n' | sort").output
    assert owners.split() == [
        "alice:alice", "/home/alice/notes", "alice:alice", "/home/alice/notes/today",
        "alice:alice", "/home/alice/tree", "alice:alice", "/home/alice/tree/file",
    ]  # fmt: skip
    vm.files.download("tree", tmp_path / "back", user="alice")
    assert (tmp_path / "back" / "file").read_text() == "x"


def test_a_user_has_no_more_rights_than_in_a_shell(vm: VM, tmp_path: Path) -> None:
    vm.run("mkdir -m 700 /srv/private; echo secret > /srv/private/file; echo x > /srv/shared; chmod 640 /srv/shared")
    vm.run("ln -s /srv/private /home/alice/link; ln -s /proc/1/root/srv/private /home/alice/magic", check=True)
    (tmp_path / "file").write_text("x")
    for refused in (
        lambda: vm.files.read("/etc/shadow", user="alice"),
        lambda: vm.files.read("/proc/1/environ", user="alice"),
        lambda: vm.files.read("link/file", user="alice"),
        lambda: vm.files.read("magic/file", user="alice"),
        lambda: vm.files.write("link/new", "x", user="alice"),
        lambda: vm.files.write("/etc/passwd", "x", user="alice"),
        lambda: vm.files.write("mine", "x", owner="root", user="alice"),
        lambda: vm.files.remove("/srv/shared", user="alice"),
        lambda: vm.files.upload(tmp_path / "file", "/srv/new", user="alice"),
        lambda: vm.files.download("/srv/private", tmp_path / "out", user="alice"),
    ):
        with pytest.raises(SquibError):
            refused()
    with pytest.raises(PermissionDenied):
        vm.files.read("/srv/shared", user="alice")
    vm.run("chgrp team /srv/shared", check=True)
    assert vm.files.read_text("/srv/shared", user="alice") == "x\n"  # by a supplementary group


def test_the_vms_user_and_working_directory(home: Home) -> None:
    with VM(user="1000:1000", cwd="/srv/app") as vm:
        vm.run("mkdir -p /srv/app && chown 1000:1000 /srv/app", user="root", cwd="/", check=True)
        assert vm.run("id -u; pwd").output == "1000\n/srv/app\n"
        vm.files.write("sub/file", "x")
        vm.stop()
        vm.start()
        assert vm.run("stat -c %u file", cwd="sub").output == "1000\n"
        with pytest.raises(PermissionDenied):
            vm.files.write("/etc/x", "")
        vm.files.write("/etc/x", "", user="root")
        with pytest.raises(NoSuchFile):
            vm.files.read("other")
