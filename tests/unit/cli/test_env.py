"""``squib env``."""

import pytest

from tests.fakes.api import FakeAPI
from tests.unit.cli.conftest import Squib


@pytest.fixture(autouse=True)
def web(api: FakeAPI) -> None:
    api.add("web")
    api.env = {"TOKEN": "hunter2"}


def test_set_sends_values_and_prints_names(squib: Squib, api: FakeAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAKEN", "from here")
    ended = squib("env", "set", "web", "A=1=2", "TAKEN")
    assert (ended.status, ended.text) == (0, "A\nTAKEN\nTOKEN\n")
    assert api.body("PATCH /vms/web/env") == {"set": {"A": "1=2", "TAKEN": "from here"}}


def test_list_shows_values_only_if_asked_to(squib: Squib) -> None:
    assert squib("env", "list", "web").text == "TOKEN\n"
    assert squib("env", "ls", "web", "--json").json == {"vm": "web", "env_names": ["TOKEN"]}
    assert squib("env", "list", "web", "--show-values").text == "TOKEN=hunter2\n"
    assert squib("env", "list", "web", "--show-values", "--json").json == {"vm": "web", "env": {"TOKEN": "hunter2"}}


def test_unset(squib: Squib, api: FakeAPI) -> None:
    assert squib("env", "unset", "web", "TOKEN", "OTHER").text == ""
    assert api.body("PATCH /vms/web/env") == {"unset": ["TOKEN", "OTHER"]}


@pytest.mark.parametrize("arguments", [["set", "web"], ["unset", "web"], ["list"], ["set", "web", "NOT_SET_HERE"]])
def test_what_is_missing_is_asked_for(squib: Squib, api: FakeAPI, arguments: list[str]) -> None:
    assert squib("env", *arguments).status == 2
    assert api.made == []


def test_a_vm_that_is_not_there(squib: Squib) -> None:
    ended = squib("env", "list", "nosuch", "--json")
    assert (ended.status, ended.error["code"]) == (1, "not_found")
