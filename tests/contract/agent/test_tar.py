"""``/v1/files/tar``: trees leave and enter a guest as archives."""

import asyncio
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.contract.agent.http2 import Answer
from tests.contract.agent.implementations import Implementation
from tests.contract.agent.test_files import BAD_REQUEST, FILE_EXISTS, NO_SUCH_FILE, NOT_A_DIRECTORY, at
from tests.fakes.trees import archive, header, member, records, snapshot

pytestmark = pytest.mark.anyio
DIRECTORY, LINK, SYMLINK = tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE


async def get(agent: Implementation, *paths: Path | str) -> Answer:
    query = "&".join(at(path)[1:] for path in paths)
    async with agent.session() as session:
        return await session.request("GET", f"/v1/files/tar?{query}")


async def put(agent: Implementation, path: Path | str, body: bytes, **options: object) -> Answer:
    async with agent.session() as session:
        return await session.request("PUT", f"/v1/files/tar{at(path, **options)}", body)


def members(answer: Answer) -> dict[str, tarfile.TarInfo]:
    assert (answer.status, answer.headers["content-type"], answer.reset) == (200, "application/x-tar", None)
    with tarfile.open(fileobj=io.BytesIO(answer.body), errors="surrogateescape") as tar:
        return {info.name: info for info in tar}


def make_tree(root: Path) -> None:
    (root / "dir" / "below").mkdir(parents=True)
    (root / "dir" / "file").write_bytes(b"content")
    (root / "dir" / "file").chmod(0o4751)
    (root / "dir" / "n\udcff").write_bytes(os.urandom(100_000))
    (root / "dir" / "link").symlink_to(b"no\xffsuch")
    (root / "dir" / "hard").hardlink_to(root / "dir" / "file")
    os.mkfifo(root / "dir" / "fifo")
    for path in (
        root / "dir" / "below",
        root / "dir" / "n\udcff",
        root / "dir" / "fifo",
        root / "dir" / "file",
        root / "dir",
    ):
        os.utime(path, ns=(0, 1_763_775_600_500_000_000))


async def test_a_tree_comes_back_the_same(agent: Implementation) -> None:
    make_tree(agent.folder)
    packed = await get(agent, agent.folder / "dir")
    found = members(packed)
    assert set(found) == {"dir", *(f"dir/{name}" for name in ("below", "file", "n\udcff", "link", "hard", "fifo"))}
    assert (found["dir/file"].uid, found["dir/file"].gid, found["dir/file"].mode) == (os.getuid(), os.getgid(), 0o4751)
    assert sorted(found[f"dir/{name}"].type for name in ("file", "hard")) == [tarfile.REGTYPE, tarfile.LNKTYPE]
    (agent.folder / "copy").mkdir()
    answer = await put(agent, agent.folder / "copy", bytes(packed.body))
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == {"entries": 7, "bytes": 100_007}
    original, copy = snapshot(agent.folder / "dir"), snapshot(agent.folder / "copy" / "dir")
    assert {name: entry for name, entry in copy.items() if entry[0] != "l"} == {
        name: entry for name, entry in original.items() if entry[0] != "l"
    }
    assert (agent.folder / "copy" / "dir" / "link").readlink() == Path("no\udcffsuch")
    assert (agent.folder / "copy" / "dir" / "file").samefile(agent.folder / "copy" / "dir" / "hard")


async def test_several_paths_and_contents(agent: Implementation) -> None:
    make_tree(agent.folder)
    (agent.folder / "one").write_text("1")
    assert set(members(await get(agent, agent.folder / "one", agent.folder / "dir" / "file"))) == {"one", "file"}
    for end in ("/.", "/"):
        contents = members(await get(agent, f"{agent.folder}/dir{end}"))
        assert set(contents) == {".", "below", "file", "n\udcff", "link", "hard", "fifo"}
    assert (await get(agent, f"{agent.folder}/one/.")).error == NOT_A_DIRECTORY
    assert (await get(agent, agent.folder / "one", agent.folder / "nosuch")).error == NO_SUCH_FILE
    assert (await get(agent, f"{agent.folder}/dir/..")).error == BAD_REQUEST


async def test_an_archive_becomes_a_new_directory(agent: Implementation) -> None:
    path = agent.folder / "new"
    data = archive(member("a/b", b"1"), member("c", b"23")).getvalue()
    assert (await put(agent, path, data, create=1)).json() == {"entries": 2, "bytes": 3}
    assert ((path / "a" / "b").read_bytes(), (path / "c").read_bytes()) == (b"1", b"23")
    assert (await put(agent, path, data, create=1)).error == FILE_EXISTS
    assert (await put(agent, agent.folder / "nosuch", data)).error == NO_SUCH_FILE
    assert (await put(agent, path / "c", data)).error == NOT_A_DIRECTORY
    assert (await put(agent, agent.folder / "no" / "such", data, create=1)).error == NO_SUCH_FILE
    assert [found.name for found in agent.folder.iterdir()] == ["new"]


async def test_an_archive_that_breaks_off_makes_no_directory(agent: Implementation) -> None:
    data = archive(member("a", b"1" * 100_000)).getvalue()
    assert (await put(agent, agent.folder / "new", data[:50_000], create=1)).error == BAD_REQUEST
    assert list(agent.folder.iterdir()) == []
    async with agent.session() as session:
        stream, _ = await session.send(
            "PUT", f"/v1/files/tar{at(agent.folder / 'new', create=1)}", data[:700], end=False
        )
        session.cancel(stream)
        async with asyncio.timeout(10):
            await session.request("GET", "/v1/hello")
            while list(agent.folder.iterdir()):
                await session.request("GET", "/v1/hello")


@pytest.mark.parametrize(
    "data",
    [
        b"x" * 1024,
        archive(member("/absolute")).getvalue(),
        archive(member("../outside")).getvalue(),
        archive(member("a/../../outside")).getvalue(),
        archive(member("out", type_=SYMLINK, link=".."), member("out/inside", b"1")).getvalue(),
        archive(member("a", type_=LINK, link="../outside")).getvalue(),
        archive(member("a", type_=LINK, link="nosuch")).getvalue(),
        archive(records(tarfile.XGLTYPE, SQUIB_error=b"unreadable")).getvalue(),
    ],
    ids=["garbage", "absolute", "parent", "inner parent", "own link", "hard link", "dangling hard link", "error"],
)
async def test_a_hostile_archive_reaches_nothing_outside(agent: Implementation, data: bytes) -> None:
    target = agent.folder / "target"
    target.mkdir()
    (agent.folder / "outside").write_text("untouched")
    assert (await put(agent, target, data)).error == BAD_REQUEST
    assert sorted(path.name for path in agent.folder.iterdir()) == ["outside", "target"]
    assert (agent.folder / "outside").read_text() == "untouched"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"user": "nosuch"}, (422, "no_such_user")), ({"user": "me", "keep_owner": 1}, BAD_REQUEST),
        ({"keep_owner": "x"}, BAD_REQUEST), ({"create": "x"}, BAD_REQUEST),
    ],
)  # fmt: skip
async def test_wrong_options(agent: Implementation, options: dict[str, Any], error: tuple[int, str]) -> None:
    assert (await put(agent, agent.folder, archive(member("a")).getvalue(), **options)).error == error
    assert list(agent.folder.iterdir()) == []


async def test_files_take_the_place_of_what_is_there(agent: Implementation) -> None:
    folder = agent.folder
    (folder / "file").write_text("old")
    (folder / "kept").mkdir()
    (folder / "kept" / "other").touch()
    (folder / "real").mkdir()
    (folder / "linked").symlink_to("real")
    data = archive(
        member("file", b"new"), header("kept", DIRECTORY, mode=0o755), member("kept/a", b"1"), member("linked/b", b"2")
    ).getvalue()
    assert (await put(agent, folder, data)).json() == {"entries": 4, "bytes": 5}
    assert (folder / "file").read_bytes() == b"new"
    assert sorted(path.name for path in (folder / "kept").iterdir()) == ["a", "other"]
    assert ((folder / "real" / "b").read_bytes(), (folder / "linked").is_symlink()) == (b"2", True)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
async def test_the_owners_of_an_archive(real: Implementation) -> None:
    info = tarfile.TarInfo("a")
    info.uid, info.gid = 4711, 4712
    data = info.tobuf() + bytes(1024)
    for options, owner in (({}, (0, 0)), ({"user": "nobody"}, (65534, 65534)), ({"keep_owner": 1}, (4711, 4712))):
        await put(real, real.folder, data, **options)
        status = (real.folder / "a").stat()
        assert (status.st_uid, status.st_gid) == owner


VALUE = b"value\xff\0=\n"


async def test_extended_attributes_of_users_are_kept_if_asked_for(agent: Implementation) -> None:
    tree = agent.folder / "tree"
    tree.mkdir()
    for name, data in (("full", b"x"), ("empty", b"")):
        (tree / name).write_bytes(data)
        os.setxattr(tree / name, "user.a", VALUE)
    os.setxattr(tree, "user.dir", b"")
    async with agent.session() as session:
        plain = await session.request("GET", f"/v1/files/tar{at(f'{tree}/.')}")
        full = await session.request("GET", f"/v1/files/tar{at(f'{tree}/.', xattrs=1)}")
        assert b"SCHILY" not in plain.body
        assert (
            await session.request("PUT", f"/v1/files/tar{at(agent.folder / 'new', create=1)}", bytes(full.body))
        ).status == 200
    for name in ("full", "empty"):
        assert os.getxattr(agent.folder / "new" / name, "user.a") == VALUE
    assert os.listxattr(agent.folder / "new") == ["user.dir"]


async def test_other_extended_attributes_are_dropped(agent: Implementation) -> None:
    attributes = {"SCHILY.xattr.security.capability": "x", "SCHILY.xattr.trusted.a": "x", "SCHILY.xattr.user.a": "x"}
    with io.BytesIO() as packed:
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
            info = tarfile.TarInfo("file")
            info.pax_headers = attributes
            tar.addfile(info)
        assert (await put(agent, agent.folder, packed.getvalue())).status == 200
    assert os.listxattr(agent.folder / "file") == ["user.a"]


async def test_zeros_become_holes(agent: Implementation) -> None:
    if not agent.is_real:
        pytest.skip("the fake agent writes what it gets")
    sparse = agent.folder / "source"
    with sparse.open("wb") as file:
        file.write(b"x" * 4096)
        file.seek(20 << 20)
        file.write(b"end")
        file.truncate(30 << 20)
    data = sparse.read_bytes()
    async with agent.session() as session:
        assert (await session.request("PUT", f"/v1/files{at(agent.folder / 'file')}", data)).status == 200
        packed = await session.request("GET", f"/v1/files/tar{at(sparse)}")
        (agent.folder / "to").mkdir()
        assert (
            await session.request("PUT", f"/v1/files/tar{at(agent.folder / 'to')}", bytes(packed.body))
        ).status == 200
    for copy in (agent.folder / "file", agent.folder / "to" / "source"):
        assert copy.read_bytes() == data
        assert copy.stat().st_blocks * 512 <= 128 << 10
