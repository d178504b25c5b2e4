"""``/v1/files``: reading, writing, describing, listing, making, moving and removing files."""

import asyncio
import json
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.contract.agent.http2 import RawSession
from tests.contract.agent.implementations import Implementation

pytestmark = pytest.mark.anyio
BAD_REQUEST = (400, "bad_request")
NO_SUCH_FILE = (404, "no_such_file")
NOT_A_FILE = (409, "not_a_file")
IS_A_DIRECTORY = (409, "is_a_directory")
NOT_A_DIRECTORY = (409, "not_a_directory")
FILE_EXISTS = (409, "file_exists")
PERMISSION_DENIED = (403, "permission_denied")
FIELDS = {"name", "type", "size", "mode", "uid", "gid", "user", "group", "mtime_ns", "link_target"}


def at(path: Path | str | bytes, **options: object) -> str:
    """The query for a path."""
    rest = "".join(f"&{name}={value}" for name, value in options.items())
    return f"?path={quote(os.fsencode(path))}{rest}"


async def stat(session: RawSession, path: Path, **options: object) -> dict[str, Any]:
    answer = await session.request("GET", f"/v1/files/stat{at(path, **options)}")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    return dict(answer.json())


@pytest.mark.parametrize(
    ("method", "endpoint"),
    [
        ("GET", ""), ("PUT", ""), ("DELETE", ""), ("GET", "/stat"), ("GET", "/list"), ("GET", "/watch"),
        ("GET", "/tar"), ("PUT", "/tar"),
    ],
)  # fmt: skip
async def test_a_wrong_path(agent: Implementation, method: str, endpoint: str) -> None:
    async with agent.session() as session:
        for query in ("", "?path=", "?path=/a%00b", "?path=%zz", "?path=/" + 4095 * "x"):
            assert (await session.request(method, f"/v1/files{endpoint}{query}")).error == BAD_REQUEST
        missing = agent.folder / "nosuch" / "file"
        assert (await session.request(method, f"/v1/files{endpoint}{at(missing)}")).error == NO_SUCH_FILE


async def test_a_loop_of_links(agent: Implementation) -> None:
    (agent.folder / "loop").symlink_to("loop")
    async with agent.session() as session:
        assert (await session.request("GET", f"/v1/files{at(agent.folder / 'loop')}")).error == BAD_REQUEST


async def test_a_file_is_read(agent: Implementation) -> None:
    data = os.urandom(300_000)
    path = agent.folder / "n\udcffé"
    path.write_bytes(data)
    async with agent.session() as session:
        for offset, length in ((0, None), (0, 5), (299_999, None), (100, 250_000), (5, 0), (300_000, None), (10**9, 5)):
            options = {"offset": offset} | ({} if length is None else {"length": length})
            answer = await session.request("GET", f"/v1/files{at(path, **options)}")
            expected = data[offset:] if length is None else data[offset : offset + length]
            assert (answer.status, answer.headers["content-type"]) == (200, "application/octet-stream")
            assert answer.headers["squib-length"] == str(len(expected))
            assert answer.body == expected


async def test_a_file_of_proc_has_no_length(agent: Implementation) -> None:
    async with agent.session() as session:
        answer = await session.request("GET", f"/v1/files{at('/proc/version')}")
        assert (answer.status, bytes(answer.body)) == (200, Path("/proc/version").read_bytes())
        assert "squib-length" not in answer.headers


@pytest.mark.parametrize("option", ["offset=-1", "offset=x", "length=-1", "length=1.5"])
async def test_a_wrong_range(agent: Implementation, option: str) -> None:
    async with agent.session() as session:
        assert (await session.request("GET", f"/v1/files{at('/proc/version')}&{option}")).error == BAD_REQUEST


async def test_only_regular_files_are_read(agent: Implementation) -> None:
    os.mkfifo(agent.folder / "fifo")
    async with agent.session() as session:
        for path, error in (
            (agent.folder, IS_A_DIRECTORY),
            (agent.folder / "fifo", NOT_A_FILE),
            (Path("/dev/null"), NOT_A_FILE),
        ):
            assert (await session.request("GET", f"/v1/files{at(path)}")).error == error
        assert (await session.request("GET", f"/v1/files{at('/proc/version/x')}")).error == NOT_A_DIRECTORY


async def test_a_file_is_written(agent: Implementation) -> None:
    data = os.urandom(300_000)
    path = agent.folder / "file"
    async with agent.session() as session:
        answer = await session.request("PUT", f"/v1/files{at(path)}", data)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        assert set(answer.json()) >= FIELDS
        assert answer.json() == await stat(session, path)
        assert path.read_bytes() == data
        assert path.stat().st_mode & 0o7777 == 0o644
        assert list(agent.folder.iterdir()) == [path]


async def test_the_attributes_of_a_written_file(agent: Implementation) -> None:
    path = agent.folder / "a" / "b" / "file"
    async with agent.session() as session:
        query = at(path, mode="4701", parents=1, mtime_ns=1_234_567_890, user="me")
        info = (await session.request("PUT", f"/v1/files{query}", b"x")).json()
        assert (info["mode"], info["size"], info["mtime_ns"], info["uid"]) == (0o4701, 1, 1_234_567_890, os.getuid())
        assert path.stat().st_mode & 0o7777 == 0o4701
        assert path.parent.stat().st_mode & 0o7777 == 0o755


async def test_a_replaced_file_keeps_its_mode_and_links_are_followed(agent: Implementation) -> None:
    path, link = agent.folder / "file", agent.folder / "link"
    path.write_bytes(b"old")
    path.chmod(0o600)
    link.symlink_to("file")
    async with agent.session() as session:
        info = (await session.request("PUT", f"/v1/files{at(link)}", b"new")).json()
        assert (info["name"], info["type"], info["mode"]) == ("link", "file", 0o600)
        assert (path.read_bytes(), link.is_symlink()) == (b"new", True)
        info = (await session.request("PUT", f"/v1/files{at(path, mode=640)}", b"newer")).json()
        assert info["mode"] == 0o640


async def test_what_cannot_be_written(agent: Implementation) -> None:
    (agent.folder / "file").touch()
    os.mkfifo(agent.folder / "fifo")
    refused = {
        at(agent.folder): IS_A_DIRECTORY,
        at(agent.folder / "fifo"): NOT_A_FILE,
        at(agent.folder / "file" / "below"): NOT_A_DIRECTORY,
        at(agent.folder / "file" / "below", parents=1): FILE_EXISTS,
        at(agent.folder / "f", mode="8"): BAD_REQUEST,
        at(agent.folder / "f", mode="17777"): BAD_REQUEST,
        at(agent.folder / "f", mtime_ns="x"): BAD_REQUEST,
        at(agent.folder / "f", parents="yes"): BAD_REQUEST,
        at(agent.folder / "f", user="nosuch"): (422, "no_such_user"),
        at(agent.folder / ("x" * 256)): BAD_REQUEST,
        at("/proc/nosuch"): NO_SUCH_FILE,
    }
    async with agent.session() as session:
        for query, error in refused.items():
            assert (query, (await session.request("PUT", f"/v1/files{query}", b"x")).error) == (query, error)
    assert sorted(path.name for path in agent.folder.iterdir()) == ["fifo", "file"]


async def test_an_upload_that_breaks_off_leaves_nothing(agent: Implementation) -> None:
    path = agent.folder / "file"
    path.write_bytes(b"old")
    async with agent.session() as session:
        stream, _ = await session.send("PUT", f"/v1/files{at(path)}", b"new", end=False)
        session.cancel(stream)
        await session.request("PUT", f"/v1/files{at(agent.folder / 'other')}", b"x")
        assert path.read_bytes() == b"old"
        async with asyncio.timeout(10):
            while {found.name for found in agent.folder.iterdir()} != {"file", "other"}:
                await session.request("GET", "/v1/hello")


async def test_a_file_is_described(agent: Implementation) -> None:
    folder = agent.folder
    (folder / "file").write_bytes(b"12345")
    (folder / "file").chmod(0o1640)
    os.utime(folder / "file", ns=(1, 1_763_775_600_123_456_789))
    (folder / "link").symlink_to("file")
    (folder / "broken").symlink_to(b"no\xffsuch")
    os.mkfifo(folder / "fifo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.relpath(folder / "socket"))
    listener.close()
    async with agent.session() as session:
        assert known(await stat(session, folder / "file")) == {
            "name": "file", "type": "file", "size": 5, "mode": 0o1640, "uid": os.getuid(), "gid": os.getgid(),
            "user": "root", "group": "root", "mtime_ns": 1_763_775_600_123_456_789, "link_target": None,
        }  # fmt: skip
        assert (await stat(session, folder / "link"))["type"] == "file"
        link = await stat(session, folder / "link", follow=0)
        assert (link["type"], link["link_target"], link["name"]) == ("symlink", "file", "link")
        assert (await stat(session, folder / "broken", follow=0))["link_target"] == "no\udcffsuch"
        missing = await session.request("GET", f"/v1/files/stat{at(folder / 'broken')}")
        assert missing.error == NO_SUCH_FILE
        types = {"fifo": folder / "fifo", "socket": folder / "socket", "directory": folder, "char_device": "/dev/null"}
        for kind, path in types.items():
            assert (await stat(session, Path(path)))["type"] == kind
        assert (await stat(session, Path("/")))["name"] == "/"
        wrong = await session.request("GET", f"/v1/files/stat{at('/', follow=2)}")
        assert wrong.error == BAD_REQUEST


def known(info: dict[str, Any]) -> dict[str, Any]:
    """A description without what an agent says beyond the contract, which a client ignores."""
    return {name: value for name, value in info.items() if name in FIELDS}


async def test_a_directory_is_listed(agent: Implementation) -> None:
    (agent.folder / "file").write_bytes(b"x")
    (agent.folder / "dir").mkdir()
    (agent.folder / "link").symlink_to("nosuch")
    (agent.folder / "n\udcff").touch()
    async with agent.session() as session:
        answer = await session.request("GET", f"/v1/files/list{at(agent.folder)}")
        assert (answer.status, answer.headers["content-type"]) == (200, "application/x-ndjson")
        *entries, last = map(json.loads, answer.body.splitlines())
        assert last == {"end": True}
        assert {entry["name"]: entry["type"] for entry in entries} == {
            "file": "file", "dir": "directory", "link": "symlink", "n\udcff": "file",
        }  # fmt: skip
        assert all(set(entry) >= FIELDS for entry in entries)
        not_a_directory = await session.request("GET", f"/v1/files/list{at(agent.folder / 'file')}")
        assert not_a_directory.error == NOT_A_DIRECTORY


async def post(session: RawSession, what: str, **body: object) -> tuple[int, str]:
    """The error of a request, or its status and nothing."""
    answer = await session.request("POST", f"/v1/files/{what}", body)
    return answer.error if answer.status >= 400 else (answer.status, bytes(answer.body).decode())


async def test_a_directory_is_made(agent: Implementation) -> None:
    folder = agent.folder
    (folder / "file").touch()
    async with agent.session() as session:
        assert await post(session, "mkdir", path=f"{folder}/a") == (204, "")
        assert await post(session, "mkdir", path=f"{folder}/b", mode="1777", user="me") == (204, "")
        assert await post(session, "mkdir", path=f"{folder}/x/y/z", parents=True) == (204, "")
        assert await post(session, "mkdir", path=f"{folder}/x/y/z", parents=True, mode="700") == (204, "")
        modes = {name: (folder / name).stat().st_mode & 0o7777 for name in ("a", "b", "x", "x/y/z")}
        assert modes == {"a": 0o755, "b": 0o1777, "x": 0o755, "x/y/z": 0o755}
        assert await post(session, "mkdir", path=f"{folder}/a") == FILE_EXISTS
        assert await post(session, "mkdir", path=f"{folder}/file", parents=True) == FILE_EXISTS
        assert await post(session, "mkdir", path=f"{folder}/no/such") == NO_SUCH_FILE
        assert await post(session, "mkdir", path=f"{folder}/file/a") == NOT_A_DIRECTORY
        assert await post(session, "mkdir", path=f"{folder}/c", mode="9") == BAD_REQUEST
        assert await post(session, "mkdir", path=f"{folder}/c", mode=755) == BAD_REQUEST
        assert await post(session, "mkdir", path=f"{folder}/c", user="nosuch") == (422, "no_such_user")
        assert await post(session, "mkdir", path="") == BAD_REQUEST
        assert await post(session, "mkdir") == BAD_REQUEST
        assert not (folder / "c").exists()


async def test_a_file_is_renamed(agent: Implementation) -> None:
    folder = agent.folder
    for name in ("a", "b"):
        (folder / name).write_text(name)
    for name in ("d", "empty", "full/x"):
        (folder / name).mkdir(parents=True)
    async with agent.session() as session:

        async def rename(source: str, target: str) -> tuple[int, str]:
            return await post(session, "rename", **{"from": f"{folder}/{source}", "to": f"{folder}/{target}"})

        assert await rename("a", "b") == (204, "")
        assert ((folder / "b").read_text(), (folder / "a").exists()) == ("a", False)
        assert await rename("d", "empty") == (204, "")
        assert await rename("empty", "full") == (409, "directory_not_empty")
        assert await rename("nosuch", "x") == NO_SUCH_FILE
        assert await rename("b", "nosuch/x") == NO_SUCH_FILE
        assert await rename("b", "full") == IS_A_DIRECTORY
        assert await rename("full", "b") == NOT_A_DIRECTORY
        assert await rename("full", "full/x/y") == BAD_REQUEST
        assert await post(session, "rename", **{"from": "", "to": f"{folder}/x"}) == BAD_REQUEST
        assert await post(session, "rename", **{"from": f"{folder}/b", "to": ""}) == BAD_REQUEST
        elsewhere = f"/dev/shm/squib-contract-{os.getpid()}"
        assert await post(session, "rename", **{"from": f"{folder}/b", "to": elsewhere}) == (500, "internal")


async def test_files_are_removed(agent: Implementation) -> None:
    folder = agent.folder
    (folder / "file").touch()
    (folder / "empty").mkdir()
    (folder / "full" / "below" / "deep").mkdir(parents=True)
    (folder / "link").symlink_to("full")
    async with agent.session() as session:

        async def remove(path: str, **options: object) -> tuple[int, str]:
            answer = await session.request("DELETE", f"/v1/files{at(path, **options)}")
            return answer.error if answer.status >= 400 else (answer.status, bytes(answer.body).decode())

        for name in ("file", "empty", "link"):
            assert await remove(f"{folder}/{name}") == (204, "")
            assert not os.path.lexists(folder / name)
        assert await remove(f"{folder}/full") == (409, "directory_not_empty")
        assert await remove(f"{folder}/full/below/..", recursive=1) == BAD_REQUEST
        assert await remove(f"{folder}/full", recursive=2) == BAD_REQUEST
        assert await remove(f"{folder}/full", recursive=1) == (204, "")
        assert await remove(f"{folder}/full", recursive=1) == NO_SUCH_FILE
        assert await remove("/proc/self/status") == PERMISSION_DENIED
    assert list(folder.iterdir()) == []


async def test_a_directory_is_watched(agent: Implementation) -> None:
    watched = agent.folder / "watched"
    watched.mkdir()
    async with agent.session() as session:
        _, answer = await session.send("GET", f"/v1/files/watch{at(watched, recursive=1)}")
        await session.read_until(answer, b"\n")
        assert (answer.status, answer.headers["content-type"]) == (200, "application/x-ndjson")
        assert json.loads(answer.body) == {"type": "ready"}
        await post(session, "mkdir", path=f"{watched}/a")
        await session.read_until(answer, b'"created"')
        await post(session, "rename", **{"from": f"{watched}/a", "to": f"{watched}/b"})
        await session.read_until(answer, b'"moved"')
        await session.request("DELETE", f"/v1/files{at(watched / 'b')}")
        await session.read_until(answer, b'"deleted"')
        await session.request("DELETE", f"/v1/files{at(watched)}")
        await session.finish(answer)
        _, *events, last = map(json.loads, answer.body.splitlines())
        assert last == {"end": True}
        seen = [event for event in events if event["type"] != "attributes"]
        assert seen == [
            {"type": "created", "path": f"{watched}/a"},
            {"type": "moved", "path": f"{watched}/b", "from": f"{watched}/a"},
            {"type": "deleted", "path": f"{watched}/b"},
        ]


async def test_only_directories_are_watched(agent: Implementation) -> None:
    (agent.folder / "file").touch()
    async with agent.session() as session:
        answer = await session.request("GET", f"/v1/files/watch{at(agent.folder / 'file')}")
        assert answer.error == NOT_A_DIRECTORY
        answer = await session.request("GET", f"/v1/files/watch{at(agent.folder, recursive='x')}")
        assert answer.error == BAD_REQUEST
