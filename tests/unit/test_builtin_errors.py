"""Errors are also what Python programs catch: the built-in exception for the same failure."""

import asyncio
import copy
import errno
import os
import pickle
import socket
from pathlib import Path

import pytest

from squib import ExecResult, errors
from squib.api.routes import vms
from squib.core.engine import Engine
from squib.core.guestio.exec import within_timeout
from squib.errors import SquibError
from squib.guest.budget import LoopBudget
from squib.guest.channel import open_channel
from squib.guest.response import Response
from squib.host.files import disk_errors
from squib.paths import Home
from squib.protocol.errors import BY_CODE, from_wire, to_wire
from squib.sdk.local import make_state_directory
from squib.sdk.responses import error_of
from squib.sdk.transfer.localfiles import local_errors
from tests.fakes.engine import Rig

BUILTINS = [
    (errors.InvalidArgument, ValueError, None),
    (errors.NotFound, LookupError, None),
    (errors.Unauthorized, PermissionError, errno.EACCES),
    (errors.HostNotAllowed, PermissionError, errno.EACCES),
    (errors.EngineUnavailable, ConnectionError, None),
    (errors.DiskFull, OSError, errno.ENOSPC),
    (errors.BootTimeout, TimeoutError, errno.ETIMEDOUT),
    (errors.AgentLost, ConnectionError, None),
    (errors.AgentTimeout, TimeoutError, errno.ETIMEDOUT),
    (errors.AgentTimeout, ConnectionError, errno.ETIMEDOUT),
    (errors.CommandNotFound, FileNotFoundError, errno.ENOENT),
    (errors.NotExecutable, PermissionError, errno.EACCES),
    (errors.ArgumentsTooLong, OSError, errno.E2BIG),
    (errors.NoShell, FileNotFoundError, errno.ENOENT),
    (errors.BadWorkingDirectory, FileNotFoundError, errno.ENOENT),
    (errors.NoSuchUser, LookupError, None),
    (errors.NoSuchProcess, ProcessLookupError, errno.ESRCH),
    (errors.StdinClosed, BrokenPipeError, errno.EPIPE),
    (errors.NoTerminal, OSError, errno.ENOTTY),
    (errors.CommandTimeout, TimeoutError, errno.ETIMEDOUT),
    (errors.NoSuchFile, FileNotFoundError, errno.ENOENT),
    (errors.FileExists, FileExistsError, errno.EEXIST),
    (errors.NotAFile, OSError, errno.EINVAL),
    (errors.IsADirectory, IsADirectoryError, errno.EISDIR),
    (errors.NotADirectory, NotADirectoryError, errno.ENOTDIR),
    (errors.DirectoryNotEmpty, OSError, errno.ENOTEMPTY),
    (errors.PermissionDenied, PermissionError, errno.EACCES),
    (errors.GuestDiskFull, OSError, errno.ENOSPC),
    (errors.TransferFailed, OSError, errno.EIO),
]


@pytest.mark.parametrize(("cls", "builtin", "number"), BUILTINS)
def test_an_error_is_the_builtin_for_the_same_failure(
    cls: type[SquibError], builtin: type[Exception], number: int | None
) -> None:
    with pytest.raises(builtin) as caught:
        raise from_wire(to_wire(cls("what failed", hint="what to do")))
    error: Exception = caught.value
    assert type(error) is cls
    if isinstance(error, OSError):
        assert (error.errno, error.strerror, error.filename) == (number, "what failed", None)


@pytest.mark.parametrize("cls", BY_CODE.values())
def test_a_copy_of_an_error_is_equal(cls: type[SquibError]) -> None:
    error = cls("what failed", hint="what to do", detail="evidence")
    error.extra = [1]  # type: ignore[attr-defined]
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(other) is cls
        assert (vars(other), other.args, str(other)) == (vars(error), error.args, str(error))
        assert getattr(other, "errno", None) == getattr(error, "errno", None)


@pytest.mark.parametrize("cls", [errors.DiskFull, errors.PermissionDenied, errors.NoSuchFile, errors.TransferFailed])
def test_an_error_is_not_converted_again(cls: type[SquibError], tmp_path: Path) -> None:
    """Before: the converters of a host's errors took it for one, and wrote their own message."""
    for converter in (local_errors(tmp_path), disk_errors(tmp_path)):
        error = cls("what failed")
        with pytest.raises(cls) as caught, converter:
            raise error
        assert caught.value is error


def test_a_full_disk_is_not_an_engine_that_fails_to_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(errors.DiskFull):
        make_state_directory(Home(tmp_path / "home"))


def test_an_error_of_check_has_the_result() -> None:
    for result, cls in ((ended(3), errors.CommandFailed), (ended(124, timed_out=True), errors.CommandTimeout)):
        with pytest.raises(cls) as caught:
            result.check("make")
        assert caught.value.result is result
        assert pickle.loads(pickle.dumps(caught.value)).result == result


def ended(exit_code: int, *, timed_out: bool = False) -> ExecResult:
    return ExecResult(exit_code, None, timed_out, 0.1, b"out", b"err", b"outerr")


@pytest.mark.anyio
async def test_a_directory_is_reported_as_one_and_to_older_clients_as_no_file(
    monkeypatch: pytest.MonkeyPatch, rig: Rig
) -> None:
    def fail(engine: Engine, ref: str) -> None:
        raise errors.IsADirectory("/d: is a directory")

    monkeypatch.setattr(vms, "get_vm", fail)
    async with rig.http() as (_, http):
        response = await http.get("/v1/vms/web")
    assert response.json()["error"]["code"] == "not_a_file"
    assert type(error_of(response.status_code, response.content, response.headers)) is errors.IsADirectory
    assert type(error_of(409, response.content, {})) is errors.NotAFile


@pytest.mark.anyio
async def test_a_timeout_of_the_handshake_keeps_its_own_message(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*args: object) -> Response:
        raise errors.AgentTimeout("the handshake timed out")

    with pytest.raises(errors.AgentTimeout, match="the handshake timed out"):
        await within_timeout(fail(), "web", "answer")


def test_a_connection_that_is_refused_keeps_its_own_message() -> None:
    async def connect() -> socket.socket:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    with pytest.raises(errors.AgentLost, match="cannot connect to the guest agent: refused"):
        asyncio.run(open_channel(connect, LoopBudget(), timeout_s=1, retry_s=1))
