import asyncio
from pathlib import Path

import pytest

from squib.errors import DiskFull
from squib.images.overlay import OverlayStore
from squib.paths import Home
from tests.fakes.tools import ToolBox

MKFS = (
    'for size; do path=$last; last=$size; done; truncate -s "$size" "$path"; printf ext4 | dd of="$path" conv=notrunc'
)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToolBox:
    tools = ToolBox(tmp_path, monkeypatch)
    tools.add("mkfs.ext4", MKFS)
    return tools


@pytest.fixture
def store(tmp_path: Path) -> OverlayStore:
    return OverlayStore(Home(tmp_path / "home"))


@pytest.mark.anyio
async def test_each_size_is_formatted_once_and_every_overlay_is_a_sparse_copy(
    store: OverlayStore, tools: ToolBox, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        await store.create(tmp_path / name, 10240)
    await store.create(tmp_path / "small", 16)
    assert len(tools.calls("mkfs.ext4")) == 2
    for name, size_mib in (("a", 10240), ("b", 10240), ("small", 16)):
        overlay = tmp_path / name
        assert overlay.stat().st_size == size_mib << 20
        with overlay.open("rb") as file:
            assert file.read(5) == b"ext4\0"
        assert overlay.stat().st_blocks * 512 < 1 << 20
        assert overlay.stat().st_mode & 0o200


@pytest.mark.anyio
async def test_overlays_made_at_once_are_formatted_once_and_do_not_share_a_file(
    store: OverlayStore, tools: ToolBox, tmp_path: Path
) -> None:
    await asyncio.gather(*(store.create(tmp_path / name, 16) for name in "abc"))
    assert len(tools.calls("mkfs.ext4")) == 1
    (tmp_path / "a").write_bytes(b"written")
    assert (tmp_path / "b").stat().st_size == 16 << 20


@pytest.mark.anyio
async def test_mkfs_knows_that_a_sparse_file_reads_as_zeros(
    store: OverlayStore, tools: ToolBox, tmp_path: Path
) -> None:
    await store.create(tmp_path / "a", 1024)
    assert "assume_storage_prezeroed=1" in tools.calls("mkfs.ext4")[0]


@pytest.mark.anyio
async def test_an_existing_overlay_is_not_overwritten(store: OverlayStore, tools: ToolBox, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(FileExistsError):
        await store.create(tmp_path / "a", 16)
    assert (tmp_path / "a").read_text() == "mine"


@pytest.mark.anyio
async def test_a_full_disk_is_reported_and_the_next_attempt_formats_again(
    store: OverlayStore, tools: ToolBox, tmp_path: Path
) -> None:
    tools.add("mkfs.ext4", "echo 'mkfs.ext4: No space left on device while writing out' >&2; exit 1")
    with pytest.raises(DiskFull):
        await store.create(tmp_path / "a", 16)
    assert not (tmp_path / "a").exists()
    tools.add("mkfs.ext4", MKFS)
    await store.create(tmp_path / "a", 16)
    assert (tmp_path / "a").stat().st_size == 16 << 20


@pytest.mark.anyio
async def test_formatting_is_reported_and_a_copy_is_not(store: OverlayStore, tools: ToolBox, tmp_path: Path) -> None:
    steps: list[str] = []
    for name in ("a", "b"):
        await store.create(tmp_path / name, 16, lambda progress: steps.append(progress.step))
    assert steps == ["format disk"]


@pytest.mark.anyio
async def test_a_truncated_empty_file_system_is_formatted_again(
    store: OverlayStore, tools: ToolBox, tmp_path: Path
) -> None:
    await store.create(tmp_path / "a", 16)
    [empty] = tmp_path.glob("home/cache/overlays/*.ext4")
    empty.chmod(0o644)
    empty.write_bytes(b"")
    await store.create(tmp_path / "b", 16)
    assert (tmp_path / "b").stat().st_size == 16 << 20
    assert len(tools.calls("mkfs.ext4")) == 2
