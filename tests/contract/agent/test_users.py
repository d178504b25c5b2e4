"""``as_user`` and relative paths: requests on behalf of a user, and ``/v1/account``."""

import os

import pytest

from squib import errors
from tests.contract.agent.implementations import Implementation
from tests.contract.agent.test_files import BAD_REQUEST, at

pytestmark = pytest.mark.anyio
NO_SUCH_USER = (422, "no_such_user")


def names(agent: Implementation) -> list[str]:
    return sorted(path.name for path in agent.home.iterdir())


@pytest.mark.parametrize("user", [None, "me"])
async def test_relative_paths_begin_in_the_home(agent: Implementation, user: str | None) -> None:
    acting = {} if user is None else {"as_user": user}
    async with agent.session() as session:
        written = await session.request("PUT", f"/v1/files{at('sub/file', parents=1, **acting)}", b"x")
        assert (written.status, (agent.home / "sub" / "file").read_text()) == (200, "x")
        assert (await session.request("GET", f"/v1/files{at('sub/file', **acting)}")).body == b"x"
        assert (await session.request("GET", f"/v1/files/stat{at('.', **acting)}")).status == 200
        body = {"from": "sub", "to": "other"} | acting
        assert (await session.request("POST", "/v1/files/rename", body)).status == 204
        assert (await session.request("POST", "/v1/files/mkdir", {"path": "made"} | acting)).status == 204
        assert names(agent) == ["made", "other"]
        removed = await session.request("DELETE", f"/v1/files{at('other', recursive=1, **acting)}")
        assert (removed.status, names(agent)) == (204, ["made"])


@pytest.mark.parametrize(
    ("method", "endpoint"),
    [
        ("GET", ""), ("PUT", ""), ("DELETE", ""), ("GET", "/stat"), ("GET", "/list"), ("GET", "/watch"),
        ("GET", "/tar"), ("PUT", "/tar"),
    ],
)  # fmt: skip
async def test_an_unknown_user(agent: Implementation, method: str, endpoint: str) -> None:
    async with agent.session() as session:
        answer = await session.request(method, f"/v1/files{endpoint}{at(agent.folder, as_user='nosuch')}")
        assert answer.error == NO_SUCH_USER


async def test_an_unknown_user_in_a_body(agent: Implementation) -> None:
    path = str(agent.folder / "new")
    async with agent.session() as session:
        for endpoint, body in (("mkdir", {"path": path}), ("rename", {"from": path, "to": path})):
            assert (
                await session.request("POST", f"/v1/files/{endpoint}", body | {"as_user": "nosuch"})
            ).error == NO_SUCH_USER


async def test_missing_parents_of_a_new_directory(agent: Implementation) -> None:
    path = agent.folder / "a" / "b" / "new"
    async with agent.session() as session:
        archive = bytes(1024)
        assert (await session.request("PUT", f"/v1/files/tar{at(path, create=1)}", archive)).error[0] == 404
        assert (await session.request("PUT", f"/v1/files/tar{at(path, parents=1)}", archive)).error == BAD_REQUEST
        assert (await session.request("PUT", f"/v1/files/tar{at(path, create=1, parents=1)}", archive)).status == 200
        assert path.is_dir()


async def test_an_account(agent: Implementation) -> None:
    for user in (None, "me"):
        account = await agent.client.account(user)
        assert (account.name, account.home, account.uid) == (user or "root", str(agent.home), os.getuid())
    with pytest.raises(errors.NoSuchUser):
        await agent.client.account("nosuch")
