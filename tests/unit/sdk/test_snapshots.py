"""`Snapshots` and `AsyncSnapshots`: export and import."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from squib import AsyncSnapshots, EngineClient, InvalidArgument, NameTaken, NotFound, Snapshots, TransferFailed
from squib.core.lifecycle.create import create_vm
from squib.core.snapshots import saved
from squib.core.snapshots.exporting import Export
from squib.core.snapshots.snapshot import create_snapshot, delete_snapshot
from squib.errors import HostError
from squib.images import store as images
from squib.kernels import catalog
from squib.models import Progress, VMConfig
from tests.fakes import assets
from tests.fakes.engine import Rig
from tests.fakes.served import Served


@pytest.fixture
def served(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """An engine with a snapshot ``s1`` that can be exported."""
    monkeypatch.setattr(images, "build_rootfs", assets.build_rootfs)
    monkeypatch.setattr(catalog, "_make", assets.build_kernel)
    monkeypatch.delenv("SQUIB_URL", raising=False)
    monkeypatch.setenv("SQUIB_HOME", str(rig.home.root))
    with Served(rig).running() as served:

        async def save(engine: object) -> None:
            config = VMConfig(name="small", disk_size_mib=16, cold=True)
            await create_vm(served.engine, config, start=True, on_progress=lambda _: None)
            await create_snapshot(served.engine, "small", name="s1")

        served.call(save)
        yield served


@pytest.fixture
def snapshots(served: Served) -> Iterator[Snapshots]:
    snapshots = Snapshots()
    yield snapshots
    snapshots.close()


def test_a_snapshot_is_exported_and_imported(snapshots: Snapshots, tmp_path: Path) -> None:
    file = tmp_path / "s1.tar"
    steps: list[Progress] = []
    size = snapshots.export_file("s1", file, on_progress=steps.append)
    assert size == file.stat().st_size
    assert (steps[-1].done, steps[-1].total, steps[-1].unit) == (size, size, "bytes")
    assert b"".join(snapshots.export_stream("s1")) == file.read_bytes()
    steps.clear()
    made = snapshots.import_file(file, name="s2", on_progress=steps.append)
    assert steps[-2:] == [
        Progress(step="s1.tar", done=size, total=size, unit="bytes"), Progress(step="checking"),
    ]  # fmt: skip
    assert snapshots.get("s2") == made
    assert snapshots.import_stream(file.read_bytes(), name="s3").name == "s3"
    with file.open("rb") as opened:
        assert snapshots.import_stream(opened, name="s4").name == "s4"
    assert sorted(found.name for found in snapshots.list()) == ["s1", "s2", "s3", "s4"]
    snapshots.delete("s2")
    with pytest.raises(NotFound):
        snapshots.get("s2")
    with pytest.raises(NameTaken):
        snapshots.import_file(file)
    with pytest.raises(InvalidArgument, match="name"):
        snapshots.import_file(file, name="a/b")


def test_an_export_that_breaks_off_is_reported_and_leaves_nothing(
    snapshots: Snapshots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: object) -> bytes:
        raise HostError("the disk is damaged")

    monkeypatch.setattr(Export, "_read", damaged)
    with pytest.raises(TransferFailed, match="export of snapshot s1 was interrupted"):
        snapshots.export_file("s1", tmp_path / "s1.tar")
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("home", "files")] == []


def test_an_import_whose_data_fails_leaves_nothing(snapshots: Snapshots, served: Served) -> None:
    data = b"".join(snapshots.export_stream("s1"))

    def broken() -> Iterator[bytes]:
        yield data[: len(data) // 2]
        raise LookupError("the caller's own")

    with pytest.raises(LookupError, match="the caller's own"):
        snapshots.import_stream(broken(), name="s2")
    assert [found.name for found in snapshots.list()] == ["s1"]

    async def entries(engine: object) -> list[str]:
        return [path.name for path in served.rig.home.snapshots.iterdir()]

    assert len(served.call(entries)) == 1


@pytest.mark.anyio
async def test_a_client_that_goes_away_while_it_is_checked_imports_nothing(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when it goes away while a snapshot is made."""
    flush, begun, go = saved.flush, threading.Event(), threading.Event()

    def slow(paths: object) -> dict[str, str]:
        begun.set()
        go.wait(10)
        return flush(paths)  # type: ignore[arg-type]

    async with EngineClient() as engine:
        snapshots = AsyncSnapshots(engine=engine)
        data = b"".join([chunk async for chunk in snapshots.export_stream("s1")])
        monkeypatch.setattr(saved, "flush", slow)
        sending = asyncio.create_task(snapshots.import_stream(data, name="s2"))
        await asyncio.to_thread(begun.wait, 10)
        sending.cancel()
        await asyncio.wait({sending})
        go.set()
        async with asyncio.timeout(10):
            while len(list(served.rig.home.snapshots.iterdir())) > 1:
                await asyncio.sleep(0.01)
        assert [found.name for found in await snapshots.list()] == ["s1"]


@pytest.mark.anyio
async def test_an_endless_import_is_refused_at_once(served: Served) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * (1 << 16)

    async with EngineClient() as engine:
        with pytest.raises(InvalidArgument, match="a header is damaged"):
            await AsyncSnapshots(engine=engine).import_stream(endless())


def test_the_snapshot_may_be_deleted_while_it_is_exported(snapshots: Snapshots, served: Served) -> None:
    stream = snapshots.export_stream("s1")
    data = next(stream)
    served.call(lambda engine: delete_snapshot(engine, "s1"))
    data += b"".join(stream)
    assert snapshots.import_stream(data).name == "s1"


NAMES = sorted(name for name in dir(AsyncSnapshots) if not name.startswith("_"))


@pytest.mark.parametrize("name", NAMES)
def test_a_method_has_the_same_signature_in_both(name: str) -> None:
    sync, asynchronous = getattr(Snapshots, name), getattr(AsyncSnapshots, name)
    assert list(inspect.signature(sync).parameters.values()) == list(
        inspect.signature(asynchronous).parameters.values()
    )
    assert sorted(name for name in dir(Snapshots) if not name.startswith("_")) == NAMES
