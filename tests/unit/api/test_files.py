"""Files over HTTP: forwarded streams, small requests, and transfers that break."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import quote

import pytest
from starlette.types import ASGIApp

from squib.api import guards
from squib.api.app import create_app
from squib.api.guards import MAX_BODY_BYTES
from squib.core.guestio import stall
from squib.errors import AgentUnreachable
from squib.guest.http2 import STREAM_WINDOW_BYTES
from squib.protocol.errors import BY_CODE
from tests.fakes.asgi import Request
from tests.fakes.engine import Rig
from tests.fakes.files import FakeFiles
from tests.fakes.guest import running_vm

pytestmark = [pytest.mark.anyio, pytest.mark.slow]  # through an engine and a guest

URL = "/v1/vms/web/files"
ODD = ["a b", "new\nline", "\udcff\udcfe", "é", "a+b%2F&path=x#?;=", "-rf", "..."]


@contextlib.asynccontextmanager
async def guest_of(rig: Rig) -> AsyncIterator[tuple[ASGIApp, FakeFiles]]:
    """An app whose VM ``web`` runs, and the files of that VM."""
    root = rig.home.root.parent / "guest"
    root.mkdir()
    async with asyncio.timeout(20), rig.engine() as engine, running_vm(engine, rig.config) as agent:
        agent.files = FakeFiles(root)
        yield create_app(engine), agent.files


def at(path: str, **more: object) -> str:
    """A query for ``path``."""
    pairs = {"path": quote(os.fsencode(path)), **more}
    return "?" + "&".join(f"{name}={value}" for name, value in pairs.items())


async def send(app: ASGIApp, method: str, path: str, body: bytes | list[bytes] = b"", **options: Any) -> Request:
    return await Request(method, URL + path, body, **options).send_to(app)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another task does."""
    while not condition():
        await asyncio.sleep(0.002)


@pytest.mark.parametrize("name", ODD)
async def test_a_file_is_written_read_described_listed_moved_and_removed(rig: Rig, name: str) -> None:
    async with guest_of(rig) as (app, files):
        path = f"/d/{name}"
        written = await send(app, "PUT", at(path, parents=1, mode="600", mtime_ns=5), [b"con", b"tent"])
        assert (written.status, written.json["name"], written.json["mode"]) == (200, name, 0o600)
        assert written.json["mtime_ns"] == 5 and "of_the_future" not in written.json
        assert files.at(path).read_bytes() == b"content"
        read = await send(app, "GET", at(path))
        assert (read.status, bytes(read.received)) == (200, b"content")
        assert dict(read.answered)["content-length"] == "7"
        assert (await send(app, "GET", at(path, offset=2, length=3))).received == b"nte"
        assert (await send(app, "GET", "/stat" + at(path))).json["name"] == name
        lines = (await send(app, "GET", "/list" + at("/d"))).received.splitlines()
        assert [json.loads(line).get("name") for line in lines] == [name, None]
        moved = json.dumps({"from": path, "to": "/d/plain"}).encode()
        assert (await send(app, "POST", "/rename", moved)).status == 204
        assert os.listdir(files.at("/d")) == ["plain"]  # noqa: PTH208
        assert (await send(app, "DELETE", at("/d"))).error["code"] == "directory_not_empty"
        assert (await send(app, "DELETE", at("/d", recursive=1))).status == 204
        assert (await send(app, "GET", at(path))).error["code"] == "no_such_file"


async def test_directories_are_made(rig: Rig) -> None:
    async with guest_of(rig) as (app, files):
        body = json.dumps({"path": "/a/\udcff", "parents": True, "mode": "700", "user": "me"}).encode()
        assert (await send(app, "POST", "/mkdir", body)).status == 204
        assert files.at("/a/\udcff").stat().st_mode & 0o777 == 0o700
        assert files.owners == {"/a/\udcff": "me"}
        refused = await send(app, "POST", "/mkdir", b'{"path": "/a"}')
        assert (refused.status, refused.error["code"]) == (409, "file_exists")


async def test_links_are_described_themselves_if_asked_for(rig: Rig) -> None:
    async with guest_of(rig) as (app, files):
        files.at("/link").symlink_to("nowhere\udcff")
        info = (await send(app, "GET", "/stat" + at("/link", follow="false"))).json
        assert (info["type"], info["link_target"]) == ("symlink", "nowhere\udcff")
        assert (await send(app, "GET", "/stat" + at("/link"))).error["code"] == "no_such_file"


@pytest.mark.parametrize(
    ("method", "path", "problem"),
    [
        ("GET", "?path=~/x", "expanded"),
        ("GET", "?path=", "empty"),
        ("PUT", "?path=~", "expanded"),
        ("DELETE", "?path=~", "expanded"),
        ("GET", "/stat?path=~", "expanded"),
        ("GET", "/list?path=~", "expanded"),
        ("GET", "/watch?path=~", "expanded"),
        ("GET", "/tar?path=/a&path=~", "expanded"),
        ("PUT", "/tar?path=~", "expanded"),
        ("GET", "?path=/a%00b", "NUL"),
        ("GET", "?path=/" + "a" * 5000, "5001 bytes"),
        ("GET", "", "path"),
        ("GET", "?path=/a&path=/b", "expected one path, got 2"),
        ("GET", "?path=/a&offset=-1", "offset"),
        ("GET", "?path=/a&length=9223372036854775808", "length"),
        ("PUT", "?path=/a&mode=rw", "mode"),
        ("PUT", "?path=/a&mode=0o644", "mode"),
        ("PUT", "?path=/a&mode=77777", "mode"),
    ],
)
async def test_what_is_no_path_does_not_reach_the_guest(rig: Rig, method: str, path: str, problem: str) -> None:
    async with guest_of(rig) as (app, files):
        request = await send(app, method, path, b"data")
        assert (request.status, request.error["code"]) == (400, "invalid_argument")
        assert problem in request.error["message"]
        assert os.listdir(files.root) == []  # noqa: PTH208


@pytest.mark.parametrize("body", [{"path": ""}, {"path": "/x", "mode": "rw"}, {"path": 5}, {}])
async def test_a_directory_that_is_none_is_refused(rig: Rig, body: object) -> None:
    async with guest_of(rig) as (app, _):
        request = await send(app, "POST", "/mkdir", json.dumps(body).encode())
        assert (request.status, request.error["code"]) == (400, "invalid_argument")


@pytest.mark.parametrize("suffix", ["", "/tar"])
async def test_a_vm_that_does_not_run_has_no_files(rig: Rig, suffix: str) -> None:
    async with asyncio.timeout(20), rig.engine() as engine:
        app = create_app(engine)
        config = json.dumps({"config": rig.config.model_dump(exclude_unset=True) | {"name": "web"}})
        assert (await Request("POST", "/v1/vms", config.encode()).send_to(app)).status == 201
        request = await send(app, "PUT", suffix + at("/x"), b"data")
        assert (request.error["code"], request.error["hint"]) == ("wrong_state", "squib start web")


async def test_a_body_has_no_limit_and_is_not_gathered(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "MAX_BODY_BYTES", limit := 1 << 20)
    piece = os.urandom(1 << 16)
    count = 3 * limit // len(piece)

    async with guest_of(rig) as (app, files):
        headers = [("content-length", str(count * len(piece)))]
        assert (await send(app, "PUT", at("/big"), [piece] * count, headers=headers)).json["size"] == 3 * limit
        assert files.at("/big").read_bytes() == piece * count


@pytest.mark.parametrize("path", ["/mkdir", "/rename", "/x", "/tar/x"])
async def test_only_what_streams_has_no_limit(rig: Rig, path: str) -> None:
    async with guest_of(rig) as (app, _):
        for method in ("POST", "PUT"):
            headers = [("content-length", str(MAX_BODY_BYTES + 1))]
            assert (await send(app, method, path, headers=headers)).status == 413


async def test_a_client_that_goes_away_leaves_nothing_in_the_guest(rig: Rig) -> None:
    async with guest_of(rig) as (app, files):
        files.at("/kept").write_bytes(b"old")
        for query in (at("/new"), at("/kept"), "/tar" + at("/tree", create=1)):
            request = Request("PUT", URL + query, [b"x" * 1000, b"y"], unfinished=True)
            task = asyncio.create_task(request.send_to(app))
            await until(lambda: files.left_over() != [])
            request.leave.set()
            await task
            await until(lambda: files.left_over() == [])
        assert os.listdir(files.root) == ["kept"]  # noqa: PTH208
        assert files.at("/kept").read_bytes() == b"old"


async def test_a_client_that_stops_reading_stops_the_guest(rig: Rig) -> None:
    async with guest_of(rig) as (app, files):
        files.at("/big").write_bytes(bytes(8 << 20))
        request = Request("GET", URL + at("/big"))
        request.reads.clear()
        task = asyncio.create_task(request.send_to(app))
        await request.arrived.wait()
        assert (await send(app, "GET", "/stat" + at("/big"))).json["size"] == 8 << 20
        assert len(request.received) <= STREAM_WINDOW_BYTES
        request.reads.set()
        await task
        assert len(request.received) == 8 << 20


@pytest.mark.parametrize("what", ["read", "list", "tar", "watch"])
async def test_an_answer_that_breaks_off_has_no_end(rig: Rig, what: str) -> None:
    async with guest_of(rig) as (app, files):
        files.at("/f").write_bytes(b"x" * 1000)
        files.break_off = what
        path = at("/f") if what == "read" else f"/{what}{at('/')}"
        request = await send(app, "GET", path)
        assert (request.status, request.complete) == (200, False)


@pytest.mark.parametrize("what", ["read", "list", "tar", "watch"])
async def test_a_guest_that_is_silent_is_given_up(rig: Rig, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "STALL_TIMEOUT_S", 0.05)
    monkeypatch.setattr(stall, "_POLL_S", 0.01)

    async with guest_of(rig) as (app, files):
        files.at("/f").write_bytes(b"x" * 1000)
        files.stalled = {what}
        request = await send(app, "GET", at("/f") if what == "read" else f"/{what}{at('/')}")
        assert (request.status, request.complete) == (200, False)


async def test_a_guest_that_takes_nothing_is_given_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "STALL_TIMEOUT_S", 0.05)
    monkeypatch.setattr(stall, "_POLL_S", 0.01)

    async with guest_of(rig) as (app, files):
        files.stalled = {"write"}
        request = await send(app, "PUT", at("/f"), [b"x" * 65536] * 100)
        assert request.error["code"] == "agent_timeout" and "made no progress" in request.error["message"]
        await until(lambda: os.listdir(files.root) == [])  # noqa: PTH208


async def test_a_slow_client_is_not_given_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "STALL_TIMEOUT_S", 0.02)
    monkeypatch.setattr(stall, "_POLL_S", 0.005)

    async with guest_of(rig) as (app, files):
        files.at("/f").write_bytes(bytes(1 << 20))
        reader = Request("GET", URL + at("/f"))
        reader.reads.clear()
        writer = Request("PUT", URL + at("/g"), [b"x", b"y"], unfinished=True)
        tasks = [asyncio.create_task(each.send_to(app)) for each in (reader, writer)]
        await reader.arrived.wait()
        await asyncio.sleep(0.2)  # ten times as long as a guest may be silent
        assert not any(task.done() for task in tasks)
        reader.reads.set()
        writer.finish()
        await asyncio.gather(*tasks)
        assert len(reader.received) == 1 << 20 and writer.status == 200
        assert files.at("/g").read_bytes() == b"xy"


async def test_a_guest_that_refuses_early_is_heard_at_once(rig: Rig) -> None:
    """It does not have to wait for the end of a body that may have none."""

    async with guest_of(rig) as (app, files):
        files.answers["/full"] = (507, b'{"error": {"code": "guest_disk_full", "message": "/full: no space left"}}')
        request = await Request("PUT", URL + at("/full"), b"x" * 1000, endless=True).send_to(app)
        assert (request.status, request.error["code"]) == (507, "guest_disk_full")


@pytest.mark.parametrize(
    "answer", [b"{}", b"[]", b"", b'{"name": "../../x"}', b"x" * 100_000, b'{"name": "x", "size": -1}']
)
async def test_a_description_that_is_none_is_an_error_of_the_guest(rig: Rig, answer: bytes) -> None:
    async with guest_of(rig) as (app, files):
        files.answers["/x"] = (200, answer)
        for request in (await send(app, "GET", "/stat" + at("/x")), await send(app, "PUT", at("/x"), b"data")):
            assert issubclass(BY_CODE[request.error["code"]], AgentUnreachable)


async def test_a_guest_is_not_believed_everything(rig: Rig) -> None:
    async with guest_of(rig) as (app, files):
        for code in ("unauthorized", "disk_full", "archive_refused", "x"):
            files.answers["/x"] = (403, json.dumps({"error": {"code": code, "message": "m"}}).encode())
            assert (await send(app, "GET", at("/x"))).error["code"] == "agent_protocol_error"
        files.answers["/x"] = (403, b'{"error": {"code": "permission_denied", "message": "m"}}')
        assert (await send(app, "GET", at("/x"))).status == 403


async def test_a_watch_ends_with_its_client(rig: Rig) -> None:
    async with guest_of(rig) as (app, files):
        request = Request("GET", URL + "/watch" + at("/"))
        task = asyncio.create_task(request.send_to(app))
        await request.arrived.wait()
        files.events.put_nowait({"type": "created", "path": "/x"})
        await until(lambda: b"created" in request.received)
        assert files.watching == 1
        request.leave.set()
        await task
        await until(lambda: files.watching == 0)


async def test_a_tree_goes_in_and_comes_out_as_a_tar(rig: Rig) -> None:
    async with guest_of(rig) as (app, files):
        files.at("/a/b").mkdir(parents=True)
        files.at("/a/b/f").write_bytes(b"content")
        packed = bytes((await send(app, "GET", "/tar" + at("/a/.") + "&path=/a/b/f")).received)
        unpacked = await send(app, "PUT", "/tar" + at("/new", create=1, user="me"), packed)
        assert unpacked.json == {"entries": 4, "bytes": 2 * len(b"content")}
        assert files.at("/new/b/f").read_bytes() == files.at("/new/f").read_bytes() == b"content"
        assert files.owners == {"/new": "me"}
        again = await send(app, "PUT", "/tar" + at("/new", create=1), packed)
        assert again.error["code"] == "file_exists"
        assert (await send(app, "PUT", "/tar" + at("/new", keep_owner=1), packed)).status == 200


async def test_the_vms_user_and_working_directory_are_the_defaults(rig: Rig) -> None:
    async with rig.engine() as engine:
        config = rig.config.model_copy(update={"user": "me", "cwd": "/srv/app"})
        async with running_vm(engine, config) as agent:
            agent.users = {"root": "/root", "me": "/home/me", "other": "/home/other"}
            agent.files = files = FakeFiles(rig.home.root.parent / "guest", users=agent.users)
            (files.root / "srv/app/sub").mkdir(parents=True)
            app = create_app(engine)
            assert (await send(app, "PUT", at("f"), b"x")).status == 200
            assert (files.root / "srv/app/f").read_bytes() == b"x"
            assert (await send(app, "GET", at("f", as_user="other"))).received == b"x"
            assert files.acting == {"/srv/app/f": "other"}
            assert (await send(app, "POST", "/mkdir", b'{"path": "d"}')).status == 204
            assert files.acting["/srv/app/d"] == "me"
            requests: list[tuple[dict[str, str], str, str]] = [
                ({}, "me", "/srv/app"),
                ({"cwd": "sub"}, "me", "/srv/app/sub"),
                ({"user": "root", "cwd": "/"}, "root", "/"),
            ]
            for request, user, cwd in requests:
                for program, printed in (("pwd", f"{cwd}\n"), ("env", f'"USER": "{user}"')):
                    body = json.dumps({"argv": [program], **request}).encode()
                    answer = await Request("POST", "/v1/vms/web/exec", body).send_to(app)
                    assert printed.encode() in answer.received
            for query, home in (("", "/home/me"), ("?user=root", "/root")):
                account = await Request("GET", f"/v1/vms/web/account{query}").send_to(app)
                assert account.json["home"] == home
