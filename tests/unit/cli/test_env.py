"""``squib env`` against a real engine."""

from collections.abc import Iterator

import pytest

from tests.unit.cli.conftest import Squib


@pytest.fixture(autouse=True)
def one_variable(squib: Squib) -> Iterator[None]:
    """The VM ``web`` has one variable."""
    squib("env", "set", "web", "TOKEN=hunter2")
    yield
    names = squib("env", "list", "web").text.split()
    squib("env", "unset", "web", "TOKEN", *names)


def values(squib: Squib) -> dict[str, str]:
    found: dict[str, str] = squib("env", "list", "web", "--show-values", "--json").json["env"]
    return found


def test_set_prints_names_and_copies_local_values(squib: Squib, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAKEN", "from here")
    ended = squib("env", "set", "web", "A=1=2", "TAKEN")
    assert (ended.status, sorted(ended.text.split())) == (0, ["A", "TAKEN", "TOKEN"])
    assert values(squib) == {"A": "1=2", "TAKEN": "from here", "TOKEN": "hunter2"}


def test_list_shows_values_only_if_asked_to(squib: Squib) -> None:
    assert squib("env", "list", "web").text == "TOKEN\n"
    assert squib("env", "ls", "web", "--json").json == {"vm": "web", "env_names": ["TOKEN"]}
    assert squib("env", "list", "web", "--show-values").text == "TOKEN=hunter2\n"
    assert squib("env", "list", "web", "--show-values", "--json").json == {"vm": "web", "env": {"TOKEN": "hunter2"}}


def test_unset_ignores_what_is_not_set(squib: Squib) -> None:
    ended = squib("env", "unset", "web", "TOKEN", "OTHER")
    assert (ended.status, ended.text) == (0, "")
    assert values(squib) == {}


@pytest.mark.parametrize("arguments", [["set", "web"], ["unset", "web"], ["list"], ["set", "web", "NOT_SET_HERE"]])
def test_what_is_missing_is_asked_for(squib: Squib, arguments: list[str]) -> None:
    assert squib("env", *arguments).status == 2
    assert values(squib) == {"TOKEN": "hunter2"}


def test_a_vm_that_is_not_there(squib: Squib) -> None:
    ended = squib("env", "list", "nosuch", "--json")
    assert (ended.status, ended.error["code"]) == (1, "not_found")
