"""Downloads: whole and right, or an error that says why and no file."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from squib.artifacts.download import download
from squib.errors import DownloadFailed, InvalidArgument
from squib.models import Progress
from tests.fakes.releases import sha256
from tests.fakes.web import Web

pytestmark = pytest.mark.anyio

BODY = bytes(range(256)) * 1000
DIGEST = sha256(BODY)


@pytest.fixture
def web() -> Iterator[Web]:
    with Web().running() as web:
        yield web


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "file"


async def test_a_file_is_saved_and_its_progress_reported(web: Web, target: Path) -> None:
    web.serve("/a", BODY)
    seen: list[Progress] = []
    await download(f"{web.url}/a", target, sha256=DIGEST, max_bytes=len(BODY), on_progress=seen.append)
    assert target.read_bytes() == BODY
    assert {(progress.step, progress.total, progress.unit) for progress in seen} == {("download", len(BODY), "bytes")}
    assert seen[-1].done == len(BODY)


async def test_redirects_are_followed(web: Web, target: Path) -> None:
    web.redirect("/a", "/b?x=1")
    web.serve("/b?x=1", BODY)
    await download(f"{web.url}/a", target, sha256=DIGEST, max_bytes=len(BODY))
    assert (target.read_bytes(), web.paths) == (BODY, ["/a", "/b?x=1"])


async def fail(url: str, target: Path, *, max_bytes: int = 1 << 20, stall_timeout_s: float = 10.0) -> str:
    with pytest.raises(DownloadFailed) as caught:
        await download(url, target, sha256=DIGEST, max_bytes=max_bytes, stall_timeout_s=stall_timeout_s)
    assert not target.exists()
    return caught.value.message


async def test_another_content_is_refused_with_both_digests(web: Web, target: Path) -> None:
    web.serve("/a", BODY[:-1] + b"x")
    message = await fail(f"{web.url}/a", target)
    assert DIGEST in message and sha256(BODY[:-1] + b"x") in message


async def test_a_missing_file_is_told_with_the_status(web: Web, target: Path) -> None:
    assert "the server answered 404 Not Found" in await fail(f"{web.url}/a", target)


async def test_redirects_without_end_are_an_error(web: Web, target: Path) -> None:
    web.redirect("/a", "/a")
    assert "redirects" in await fail(f"{web.url}/a", target)


async def test_a_body_that_is_shorter_than_claimed_is_an_error(web: Web, target: Path) -> None:
    web.serve("/a", BODY, length=len(BODY) + 1)
    assert "cannot be downloaded" in await fail(f"{web.url}/a", target)


async def test_a_body_that_is_longer_than_claimed_is_another_file(web: Web, target: Path) -> None:
    web.serve("/a", BODY, length=len(BODY) - 1)
    assert sha256(BODY[:-1]) in await fail(f"{web.url}/a", target)


@pytest.mark.parametrize("length", [None, -1])
async def test_no_more_is_saved_than_is_expected(length: int | None, web: Web, target: Path) -> None:
    web.serve("/a", BODY, length=length)
    assert f"{len(BODY) - 1} " in await fail(f"{web.url}/a", target, max_bytes=len(BODY) - 1)


async def test_a_server_that_stalls_is_given_up(web: Web, target: Path) -> None:
    web.stall("/a", BODY)
    assert "no data for 0.05 s" in await fail(f"{web.url}/a", target, stall_timeout_s=0.05)


async def test_a_server_that_is_not_there_is_an_error(target: Path) -> None:
    assert "cannot be downloaded" in await fail("http://127.0.0.1:1/a", target)


@pytest.mark.parametrize("url", ["", "file:///etc/passwd", "ftp://host/a", "http://", "https:///a", "http://a:b/c"])
async def test_other_addresses_are_refused(url: str, target: Path) -> None:
    with pytest.raises(InvalidArgument, match="invalid URL"):
        await download(url, target, sha256=DIGEST, max_bytes=1)


async def test_a_cancelled_download_leaves_no_file(web: Web, target: Path) -> None:
    web.stall("/a", BODY)
    started = asyncio.Event()
    task = asyncio.create_task(
        download(f"{web.url}/a", target, sha256=DIGEST, max_bytes=1 << 20, on_progress=lambda _: started.set())
    )
    await started.wait()
    assert target.exists()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not target.exists()
