import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from squib.errors import DependencyMissing, DiskFull, ImageCorrupt, NotFound, ToolFailed
from squib.host import proc, processes
from squib.images import runtimes
from squib.images import store as cache
from squib.images.runtimes import RUNTIMES, Runtime
from squib.images.store import ImageStore
from squib.models import Progress, VMConfig
from squib.paths import Home
from tests.fakes.tools import ToolBox


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToolBox:
    tools = ToolBox(tmp_path, monkeypatch)
    tools.add_image_tools()
    return tools


def left_behind(home: Home, tools: ToolBox) -> list[Path]:
    return [*home.building.iterdir(), *tools.scratch.iterdir()]


@pytest.mark.anyio
async def test_the_packages_go_through_a_pipe_into_a_squashfs(home: Home, tools: ToolBox) -> None:
    steps: list[str] = []

    def note(progress: Progress) -> None:
        steps.append(progress.step)

    image = await ImageStore(home).ensure("base", note)
    assert image.path.read_bytes() == b"hsqsrootfs"
    assert (image.name, image.size_bytes) == ("base", 10)
    assert image == ImageStore(home).get("base")
    assert image.path == ImageStore(home).get(image.digest).path
    assert steps == ["bootstrap: running apt-get update", "squashfs", "digest"]
    assert left_behind(home, tools) == []


@pytest.mark.anyio
async def test_no_descriptor_is_left_open(home: Home, tools: ToolBox) -> None:
    await ImageStore(home).ensure("base")  # what Python opens once and keeps is open now
    before = len(list(Path("/proc/self/fd").iterdir()))
    await ImageStore(home).build("base", rebuild=True)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.anyio
async def test_mmdebstrap_gets_the_suite_and_the_packages_and_no_mirror(home: Home, tools: ToolBox) -> None:
    await ImageStore(home).ensure("python3.13")
    (call,) = tools.calls("mmdebstrap")
    assert call.endswith(" trixie -")
    assert "--variant=minbase" in call
    assert f"--include={','.join(RUNTIMES['python3.13'].packages)}" in call
    assert "://" not in call


@pytest.mark.anyio
async def test_the_root_directory_of_an_image_is_not_writable_for_all(home: Home, tools: ToolBox) -> None:
    await ImageStore(home).ensure("base")
    (call,) = tools.calls("sqfstar")
    assert "-root-mode 755 -root-uid 0 -root-gid 0" in call


@pytest.mark.anyio
async def test_without_root_the_tool_that_maps_users_is_needed(
    home: Home, tools: ToolBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    await ImageStore(home).ensure("base")
    assert "--mode=unshare" in tools.calls("mmdebstrap")[0]
    (tools.folder / "newuidmap").unlink()
    for tool in ("sh", "cat"):
        (tools.folder / tool).symlink_to(f"/bin/{tool}")
    monkeypatch.setenv("PATH", str(tools.folder))
    monkeypatch.setattr(proc, "_SYSTEM_PATH", "")
    with pytest.raises(DependencyMissing, match="newuidmap") as caught:
        await ImageStore(home).ensure("python3.13")
    assert "uidmap" in caught.value.hint


@pytest.mark.anyio
@pytest.mark.parametrize(("status", "mode"), [(0, "unshare"), (1, "root")])
async def test_root_works_in_namespaces_where_it_may(
    home: Home, tools: ToolBox, monkeypatch: pytest.MonkeyPatch, status: int, mode: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    tools.add("unshare", f"exit {status}")
    await ImageStore(home).ensure("base")
    assert f"--mode={mode}" in tools.calls("mmdebstrap")[0]


@pytest.mark.anyio
async def test_an_image_is_built_once_and_again_when_its_recipe_changes(
    home: Home, tools: ToolBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ImageStore(home)
    await store.ensure("base")
    await store.ensure("base")
    assert len(tools.calls("mmdebstrap")) == 1
    changed = Runtime("base", ("python3", "git"), min_memory_mib=128)
    monkeypatch.setattr(cache, "find_runtime", lambda name: changed)
    await store.ensure("base")
    assert len(tools.calls("mmdebstrap")) == 2


@pytest.mark.anyio
async def test_concurrent_builds_of_an_image_run_once(home: Home, tools: ToolBox) -> None:
    steps: list[str] = []
    one, two = ImageStore(home), ImageStore(home)
    images = await asyncio.gather(
        one.ensure("base", lambda p: steps.append(p.step)), two.ensure("base", lambda p: steps.append(p.step))
    )
    assert images[0] == images[1]
    assert len(tools.calls("mmdebstrap")) == 1
    assert steps.count("waiting for another build") == 1


def start_builder(home: Home) -> subprocess.Popen[bytes]:
    """Start another process that builds the image ``base``."""
    script = (
        "import asyncio, sys; from pathlib import Path; from squib.paths import Home;"
        "from squib.images.store import ImageStore;"
        "asyncio.run(ImageStore(Home(Path(sys.argv[1]))).ensure('base'))"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen([sys.executable, "-c", script, home.root], env=os.environ | {"PYTHONPATH": paths})


@pytest.mark.anyio
async def test_the_next_build_cleans_up_after_a_killed_one(home: Home, tools: ToolBox, tmp_path: Path) -> None:
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    tools.add("mmdebstrap", f'mkdir "$TMPDIR/chroot"; echo $$ >"{fifo}"; exec tail -f /dev/null')
    builder = start_builder(home)
    mmdebstrap = int(fifo.read_text())
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    assert mmdebstrap in processes.holders(home.tools_lock("image-base"))
    assert len(left_behind(home, tools)) == 2
    assert ImageStore(home).list() == []

    tools.add_image_tools()
    image = await ImageStore(home).ensure("base")
    assert image.path.read_bytes() == b"hsqsrootfs"
    assert processes.holders(home.tools_lock("image-base")) == []
    assert left_behind(home, tools) == []


@pytest.mark.anyio
@pytest.mark.parametrize("tool", ["mmdebstrap", "sqfstar"])
async def test_a_tool_that_fails_is_named_and_nothing_is_left(home: Home, tools: ToolBox, tool: str) -> None:
    tools.add(tool, "echo 'it broke' >&2; exit 7")
    with pytest.raises(ToolFailed, match=f"{tool} exited with status 7") as caught:
        await ImageStore(home).ensure("base")
    assert "it broke" in caught.value.detail
    assert ImageStore(home).list() == []
    assert left_behind(home, tools) == []


@pytest.mark.anyio
async def test_a_squashfs_that_does_not_fit_the_disk_ends_the_build_at_once(home: Home, tools: ToolBox) -> None:
    tools.add("mmdebstrap", "exec yes")
    tools.add("sqfstar", "head -c 100000 >/dev/null; echo 'write: No space left on device' >&2; exit 1")
    with pytest.raises(DiskFull):
        await ImageStore(home).ensure("base")
    assert left_behind(home, tools) == []


@pytest.mark.anyio
async def test_a_missing_tool_is_noticed_before_the_long_part(
    home: Home, tools: ToolBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tools.folder / "sqfstar").unlink()
    monkeypatch.setenv("PATH", str(tools.folder))
    monkeypatch.setattr(proc, "_SYSTEM_PATH", "")
    with pytest.raises(DependencyMissing, match="sqfstar"):
        await ImageStore(home).ensure("base")
    assert tools.calls("mmdebstrap") == []


@pytest.mark.anyio
async def test_the_hints_are_commands_that_repair_it(home: Home, tools: ToolBox) -> None:
    store = ImageStore(home)
    with pytest.raises(NotFound) as absent:
        store.get("base")
    assert absent.value.hint == "squib image build base"
    (await store.ensure("base")).path.unlink()
    with pytest.raises(ImageCorrupt) as damaged:
        store.get("base")
    assert damaged.value.hint == "squib image build base --rebuild"


@pytest.mark.anyio
async def test_an_unknown_runtime_is_not_found(home: Home) -> None:
    with pytest.raises(NotFound, match="no runtime is named perl") as caught:
        await ImageStore(home).ensure("perl")
    assert "base" in caught.value.hint


def test_every_runtime_is_valid_in_a_configuration() -> None:
    for name, runtime in RUNTIMES.items():
        assert VMConfig(runtime=name).runtime == runtime.name


def test_a_key_changes_with_the_packages_and_not_with_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime("x", ("a", "b"), 128)
    assert runtime.key == Runtime("x", ("a", "b"), 256).key
    assert runtime.key != Runtime("x", ("a", "c"), 128).key
    key = runtime.key
    monkeypatch.setattr(runtimes, "_RECIPE_VERSION", -1)
    assert runtime.key != key


def test_the_runtimes_have_the_commands_that_people_type() -> None:
    assert all("adduser" in runtime.packages for runtime in RUNTIMES.values())
    assert "python-is-python3" in RUNTIMES["python3.13"].packages
