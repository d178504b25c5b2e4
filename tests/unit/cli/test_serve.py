"""``serve``: the address, and what is printed."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from squib.api import server
from squib.api.tcp import TcpOptions
from squib.host import sockets
from squib.paths import Home
from squib.sdk.client import EngineClient
from tests.unit.cli.conftest import Squib


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Home, TcpOptions | None]]:
    """What `squib.api.server.serve` was called with; it says that it is ready, and ends."""
    calls: list[tuple[Home, TcpOptions | None]] = []

    async def serve(home: Home, *, tcp: TcpOptions | None = None, on_ready: Any) -> None:
        calls.append((home, tcp))
        on_ready(*(("http://127.0.0.1:8765", "secret") if tcp else (None, None)))

    monkeypatch.setattr(server, "serve", serve)
    monkeypatch.setattr("squib.api.logfile.log_to_file", lambda home: None)
    monkeypatch.setenv("SQUIB_HOME", str(tmp_path))
    monkeypatch.delenv("SQUIB_TOKEN", raising=False)
    return calls


def test_without_flags_only_the_unix_socket_is_served(
    squib: Squib, served: list[tuple[Home, TcpOptions | None]], tmp_path: Path
) -> None:
    assert squib("serve").text == f"the engine for {tmp_path} is ready\n"
    assert served == [(Home(tmp_path), None)]


def test_listen_prints_what_a_client_needs(squib: Squib, served: list[tuple[Home, TcpOptions | None]]) -> None:
    ended = squib("serve", "--listen", "[::1]:8765", "--allow-host", "a.example", "--allow-host", "b.example")
    assert "export SQUIB_URL=http://127.0.0.1:8765\nexport SQUIB_TOKEN=secret\n" in ended.text
    assert served[0][1] == TcpOptions("[::1]", 8765, "", ("a.example", "b.example"))


def test_json_says_the_same(squib: Squib, served: object, tmp_path: Path) -> None:
    assert squib("serve", "--json", "--listen", "127.0.0.1:0").json == {
        "socket": str(tmp_path / "engine.sock"),
        "url": "http://127.0.0.1:8765",
        "token": "secret",
    }


def test_the_token_may_come_from_the_environment(
    squib: Squib, served: list[tuple[Home, TcpOptions | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUIB_TOKEN", "t0ken")
    squib("serve", "--listen", "127.0.0.1:1")
    assert served[0][1] == TcpOptions("127.0.0.1", 1, "t0ken")


@pytest.mark.parametrize("address", ["", "8765", "host", "host:", ":80", "host:x", "host:70000", "host:-1"])
def test_what_is_no_address_is_refused(address: str, squib: Squib, served: list[object]) -> None:
    ended = squib("serve", f"--listen={address}")
    assert (ended.status, served) == (2, [])
    assert "--listen" in ended.err


def test_allow_host_is_for_listen(squib: Squib, served: list[object]) -> None:
    assert squib("serve", "--allow-host", "a").status == 2
    assert served == []


@pytest.mark.parametrize(
    ("address", "options"),
    [
        ("[::1]:0", TcpOptions("[::1]", 0)),
        ("::1:80", TcpOptions("::1", 80)),
        ("0.0.0.0:1", TcpOptions("0.0.0.0", 1)),
        ("vms.example.org:1", TcpOptions("vms.example.org", 1)),
    ],
)
def test_addresses(
    squib: Squib, served: list[tuple[Home, TcpOptions | None]], address: str, options: TcpOptions
) -> None:
    assert squib("serve", "--listen", address).status == 0
    assert served[0][1] == options


@pytest.mark.parametrize("name", ["", " ", "a b", "http://a", "a:80", "[::1", "a/b", "*", "é"])
def test_a_host_name_that_cannot_be_one_is_refused(squib: Squib, served: list[object], name: str) -> None:
    ended = squib("serve", "--listen", "127.0.0.1:0", "--allow-host", "ok", f"--allow-host={name}")
    assert (ended.status, served) == (2, [])
    assert "--allow-host" in ended.err


@pytest.mark.parametrize("token", ["", " ", " x ", "a b", "a\tb", "\x1b", "é", "x" * 1001])
def test_a_token_that_no_client_could_send_is_refused(squib: Squib, served: list[object], token: str) -> None:
    ended = squib("serve", "--listen", "127.0.0.1:0", f"--token={token}")
    assert (ended.status, served) == (2, [])
    assert "--token" in ended.err


def test_a_running_engine_listens_instead(
    squib: Squib, served: list[object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[object] = []

    async def listen(self: EngineClient, *where: object, **options: object) -> AsyncGenerator[tuple[str, str], None]:
        asked.append((where, options))
        yield "http://127.0.0.1:8765", "secret"

    monkeypatch.setattr(EngineClient, "listen", listen)
    with sockets.listen(tmp_path / "engine.sock"):
        ended = squib("serve", "--listen", "127.0.0.1:0", "--token", "t", "--allow-host", "a")
    assert "export SQUIB_URL=http://127.0.0.1:8765\nexport SQUIB_TOKEN=secret\n" in ended.text
    assert (asked, served) == ([(("127.0.0.1", 0), {"token": "t", "allowed_hosts": ("a",)})], [])
