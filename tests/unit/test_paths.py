"""Where things are on the disk."""

from pathlib import Path

import pytest

from squib.errors import InvalidArgument
from squib.paths import Home, QemuPaths, VMPaths


def all_paths(of: Home | VMPaths | QemuPaths) -> dict[str, Path]:
    names = [name for name, value in vars(type(of)).items() if isinstance(value, property)]
    return {name: path for name in names if isinstance(path := getattr(of, name), Path)}


def test_no_two_names_are_the_same_place() -> None:
    home = Home(Path("/h"))
    paths = [*all_paths(home).values(), *all_paths(home.vm("a")).values(), home.build_lock("a"), home.tools_lock("a")]
    assert len(set(paths)) == len(paths) > 15


def test_everything_is_below_the_state_directory() -> None:
    home = Home(Path("/h"))
    assert all(path.is_relative_to("/h") for path in all_paths(home).values())
    vm = home.vm("vm-1")
    assert all(path.parent == home.vms / "vm-1" for path in all_paths(vm).values())
    assert all(path.parent == vm.driver("qemu") == vm.root / "qemu" for path in all_paths(vm.qemu).values())


def test_the_state_directory_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SQUIB_HOME", "/srv/squib")
    assert Home.from_environment() == Home(Path("/srv/squib"))
    monkeypatch.setenv("SQUIB_HOME", "~/other")
    assert Home.from_environment() == Home(Path("/home/me/other"))
    for value in ("", None):
        monkeypatch.setenv("SQUIB_HOME", value) if value is not None else monkeypatch.delenv("SQUIB_HOME")
        assert Home.from_environment() == Home(Path("/home/me/.squib"))


@pytest.mark.parametrize("value", ["squib", "./x", "../x"])
def test_a_relative_state_directory_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUIB_HOME", value)
    with pytest.raises(InvalidArgument, match="not an absolute path") as caught:
        Home.from_environment()
    assert value in caught.value.message and "SQUIB_HOME" in caught.value.hint
