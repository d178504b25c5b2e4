"""Packing a user's directory or tar: the tool is a fake, its file and its end are real."""

import asyncio
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from squib import InvalidArgument, ToolFailed
from squib.images import packing
from tests.fakes.tools import ToolBox
from tests.processes import kill_9, until


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToolBox:
    folder = tmp_path / "tools"
    folder.mkdir()
    box = ToolBox(folder, monkeypatch)
    box.add_image_tools()
    box.add("mksquashfs", 'printf hsqs >"$2"')
    return box


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    return folder


@pytest.fixture(params=["directory", "tar"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    if request.param == "directory":
        return tree
    with tarfile.open(tmp_path / "tree.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.add(tree, "tree")
    return tmp_path / "tree.tar"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def pack(source: Path, target: Path) -> None:
    asyncio.run(packing.pack_rootfs(source, target))


def test_the_new_file_is_all_that_is_written(tools: ToolBox, source: Path, output: Path) -> None:
    pack(source, output / "a.squashfs")
    assert (output / "a.squashfs").read_bytes().startswith(b"hsqs")
    assert names(output) == ["a.squashfs"]


def test_without_nameless_files_a_temporary_name_is_used(
    tools: ToolBox, source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)  # EISDIR, as on a file system without them
    pack(source, output / "a.squashfs")
    assert names(output) == ["a.squashfs"]
    with pytest.raises(ToolFailed):
        tools.add("mksquashfs", "exit 1")
        tools.add("sqfstar", "exit 1")
        pack(source, output / "b.squashfs")
    assert names(output) == ["a.squashfs"]


@pytest.mark.parametrize("existing", ["file", "dangling link"])
def test_what_exists_is_not_touched(tools: ToolBox, source: Path, output: Path, existing: str) -> None:
    target = output / "a.squashfs"
    if existing == "file":
        target.write_text("mine")
    else:
        target.symlink_to("nothing")
    with pytest.raises(InvalidArgument, match="already exists"):
        pack(source, target)
    assert names(output) == ["a.squashfs"]
    assert tools.calls("mksquashfs") + tools.calls("sqfstar") == []


def test_a_target_that_appears_meanwhile_is_not_touched(tools: ToolBox, source: Path, output: Path) -> None:
    target = output / "a.squashfs"
    for tool in ("mksquashfs", "sqfstar"):
        tools.add(tool, f'echo mine >{target}; for file; do case $file in /proc/*) echo hsqs >"$file";; esac; done')
    with pytest.raises(InvalidArgument, match="already exists"):
        pack(source, target)
    assert target.read_text() == "mine\n"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing/a", "No such file or directory"),
        ("file/a", "Not a directory"),
        ("n" * 5000, "File name too long"),
        ("loop/a", "Too many levels of symbolic links"),
    ],
)
def test_a_place_that_cannot_be_written_is_named(
    tools: ToolBox, source: Path, output: Path, name: str, reason: str
) -> None:
    (output / "file").touch()
    (output / "loop").symlink_to("loop")
    with pytest.raises(InvalidArgument, match=f"cannot be written: {reason}"):
        pack(source, output / name)
    assert names(output) == ["file", "loop"]


@pytest.fixture
def packer(tools: ToolBox, source: Path, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that packs; its tool writes something, notes its pid, and goes on for ever."""
    for tool in ("mksquashfs", "sqfstar"):
        write = 'for file; do case $file in /proc/*) echo hsqs >"$file";; esac; done'
        tools.add(
            tool, f"{write}; echo $$ >{tools.scratch}/part; mv {tools.scratch}/part {tools.scratch}/pid; exec sleep 99"
        )
    code = "import asyncio, sys, pathlib; from squib.images.packing import pack_rootfs as pack; "
    code += "asyncio.run(pack(*map(pathlib.Path, sys.argv[1:])))"
    process = subprocess.Popen([sys.executable, "-c", code, source, output / "a.squashfs"])
    yield process
    process.kill()
    process.wait()


@pytest.mark.slow
def test_kill_9_leaves_no_tool_and_no_file(packer: subprocess.Popen[bytes], tools: ToolBox, output: Path) -> None:
    noted = tools.scratch / "pid"
    until(noted.exists, "the tool does not start")
    tool = int(noted.read_text())
    os.kill(tool, 0)
    kill_9(packer.pid)
    until(lambda: not is_running(tool), "the tool goes on")
    assert names(output) == []


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
