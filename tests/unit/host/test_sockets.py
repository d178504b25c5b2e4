"""Unix sockets at paths of any length."""

from pathlib import Path

import pytest

from squib.host import sockets


def test_paths_longer_than_a_socket_address(tmp_path: Path) -> None:
    folder = tmp_path / ("long-" * 20) / ("longer-" * 20)
    folder.mkdir(parents=True)
    with sockets.listen(folder / "agent.sock") as server, sockets.connect(folder / "agent.sock") as client:
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"hello")
            assert accepted.recv(5) == b"hello"


def test_only_the_user_may_connect(tmp_path: Path) -> None:
    with sockets.listen(tmp_path / "s.sock"):
        assert (tmp_path / "s.sock").stat().st_mode & 0o777 == 0o600


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    sockets.listen(tmp_path / "s.sock").close()
    with pytest.raises(ConnectionRefusedError):
        sockets.connect(tmp_path / "s.sock")
    with sockets.listen(tmp_path / "s.sock"), sockets.connect(tmp_path / "s.sock"):
        pass


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sockets.connect(tmp_path / "s.sock")
