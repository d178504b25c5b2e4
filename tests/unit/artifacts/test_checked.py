import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from squib.artifacts import checked
from squib.artifacts.building import Build
from squib.artifacts.checked import FileRecord, build_file, find_damage, record_path
from squib.artifacts.stamp import Stamp
from squib.errors import ToolFailed
from squib.host import files
from squib.models import OnProgress, Progress
from squib.paths import Home

CONTENT = b"content" + bytes(200_000) + b"end"


class Builder:
    """Builds one file and counts the builds."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root)
        self.target = self.home.overlays / "empty"
        self.builds = 0

    async def build(self, on_progress: OnProgress = lambda _: None) -> Path:
        return await build_file(self.home, "overlay", self.target, self._make, on_progress)

    async def _make(self, build: Build, path: Path) -> None:
        self.builds += 1
        build.report(Progress(step="format"))
        path.write_bytes(CONTENT)


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path / "home")


def truncate(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, 0)


def flip_byte_and_set_the_time_back(path: Path) -> None:
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"C")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns - 1_000_000_000))


def flip_byte_and_keep_the_time(path: Path) -> None:
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"C")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_another(path: Path) -> None:
    path.unlink()
    path.write_bytes(CONTENT.upper())


def replace_by_directory(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def lose_record(path: Path) -> None:
    record_path(path).unlink()


def garble_record(path: Path) -> None:
    record_path(path).write_bytes(b"\xff\0{")


def replace_record_by_directory(path: Path) -> None:
    record_path(path).unlink()
    record_path(path).mkdir()


def replace_record_by_fifo(path: Path) -> None:
    record_path(path).unlink()
    os.mkfifo(record_path(path))


def record_another_name(path: Path) -> None:
    record = FileRecord.model_validate_json(record_path(path).read_bytes())
    record_path(path).write_text(record.model_copy(update={"name": "other"}).model_dump_json())


DAMAGES = (
    truncate,
    flip_byte_and_set_the_time_back,
    flip_byte_and_keep_the_time,
    replace_by_another,
    replace_by_directory,
    replace_by_link,
    lose_record,
    garble_record,
    replace_record_by_directory,
    replace_record_by_fifo,
    record_another_name,
)


@pytest.mark.anyio
async def test_a_file_is_built_once_and_read_only(builder: Builder) -> None:
    paths = await asyncio.gather(*(builder.build() for _ in range(3)))
    assert builder.builds == 1
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert paths[0].stat().st_mode & 0o777 == 0o444
    assert list(builder.home.building.iterdir()) == []


@pytest.mark.anyio
@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_file_is_built_again_and_logged_once(
    builder: Builder, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    await builder.build()
    damage(builder.target)
    assert (await builder.build()).read_bytes() == CONTENT
    assert builder.builds == 2
    assert not builder.target.is_symlink()
    [record] = caplog.records
    assert record.getMessage().startswith(f"{builder.target} is built again: ")
    await builder.build()
    assert builder.builds == 2


@pytest.mark.anyio
async def test_the_first_build_is_not_logged_as_damage(builder: Builder, caplog: pytest.LogCaptureFixture) -> None:
    await builder.build()
    assert caplog.records == []


@pytest.mark.anyio
async def test_a_touched_file_is_hashed_once_and_not_built_again(
    builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    await builder.build()
    os.utime(builder.target, ns=(1, 1))
    hashed = []
    real = files.sparse_sha256

    def count(path: Path) -> str:
        hashed.append(path)
        return real(path)

    monkeypatch.setattr(files, "sparse_sha256", count)
    await builder.build()
    await builder.build()
    assert hashed == [builder.target]
    assert builder.builds == 1


@pytest.mark.anyio
async def test_a_file_whose_stamp_cannot_be_renewed_is_used(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    await builder.build()
    os.utime(builder.target, ns=(1, 1))

    def full(path: Path, data: bytes) -> None:
        raise files.disk_full(path)

    monkeypatch.setattr(files, "write_atomic", full)
    await builder.build()
    assert builder.builds == 1


@pytest.mark.anyio
async def test_the_file_and_its_directory_are_flushed_before_the_record_is_written(
    builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def sync(path: Path) -> None:
        events.append("directory" if path.is_dir() else "file")

    def write(path: Path, record: FileRecord) -> None:
        events.append("record")

    monkeypatch.setattr(files, "sync", sync)
    monkeypatch.setattr(checked, "_write_record", write)
    await builder.build()
    assert events == ["file", "directory", "record"]


@pytest.mark.anyio
async def test_a_failed_build_leaves_nothing(builder: Builder) -> None:
    async def fail(build: Build, path: Path) -> None:
        path.write_bytes(b"half")
        raise ToolFailed("no")

    with pytest.raises(ToolFailed):
        await build_file(builder.home, "overlay", builder.target, fail)
    assert not builder.target.exists()
    assert list(builder.home.building.iterdir()) == []


@pytest.mark.anyio
async def test_a_build_reports_its_steps_and_a_file_in_the_cache_none(builder: Builder) -> None:
    steps: list[str] = []
    for _ in range(2):
        await builder.build(lambda progress: steps.append(progress.step))
    assert steps == ["format"]


@pytest.mark.anyio
async def test_damage_is_described(builder: Builder) -> None:
    await builder.build()
    assert find_damage(builder.target) is None
    truncate(builder.target)
    assert find_damage(builder.target) == f"it has 0 bytes instead of {len(CONTENT)}"
    builder.target.unlink()
    assert find_damage(builder.target) == f"{builder.target} is missing"


def test_a_stamp_of_a_former_squib_matches_no_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    old = Stamp.model_validate(Stamp.of(path).model_dump(exclude={"ctime_ns"}))
    assert old != Stamp.of(path)
