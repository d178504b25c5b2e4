"""`vm.env`, synchronous and not, through an engine."""

import json
from collections.abc import Iterator

import pytest

from squib.errors import InvalidArgument, NotFound
from squib.sdk.aio import AsyncVM
from squib.sdk.vm import VM
from tests.fakes.served import Served

pytestmark = pytest.mark.usefixtures("served")


@pytest.fixture(autouse=True)
def empty(served: Served) -> Iterator[None]:
    """The engine is that of all tests."""
    yield
    env = VM.from_id("web").env
    env.unset(*env.list())


def test_variables_are_set_listed_and_unset() -> None:
    vm = VM.from_id("web")
    assert vm.env.list() == {}
    assert vm.env.set({"A": "1", "RAW": "\udcff"}, B="2") == {"A": "1", "B": "2", "RAW": "\udcff"}
    assert json.loads(vm.run(["env"]).stdout) == {"A": "1", "B": "2", "RAW": "\udcff"}
    assert vm.env.unset("A", "NEVER_SET") == {"B": "2", "RAW": "\udcff"}
    assert vm.env.unset() == vm.env.list() == {"B": "2", "RAW": "\udcff"}
    assert vm.refresh().env_names == ["B", "RAW"]


@pytest.mark.anyio
async def test_so_they_are_without_waiting_for_it() -> None:
    vm = await AsyncVM.from_id("web")
    assert await vm.env.set(A="1") == {"A": "1"}
    assert await vm.env.unset("A") == await vm.env.list() == {}
    await vm.close()


def test_what_is_printed_of_them_is_their_names() -> None:
    vm = VM.from_id("web")
    variables = vm.env.set(TOKEN="hunter2")
    assert (repr(variables), variables["TOKEN"]) == ("<EnvVars TOKEN>", "hunter2")
    assert "hunter2" not in f"{variables} {vm.refresh()!r} {vm.env!r}"


@pytest.mark.parametrize(
    ("name", "value"), [("1A", "hunter2"), ("", "hunter2"), ("A=B", "hunter2"), ("A", "hunter2\0")]
)
def test_what_is_none_is_refused_and_its_value_is_not_shown(name: str, value: str) -> None:
    vm = VM.from_id("web")
    with pytest.raises(InvalidArgument) as caught:
        vm.env.set({name: value})
    assert "hunter2" not in str(caught.value)
    assert vm.env.list() == {}


def test_of_a_vm_that_is_gone(served: Served) -> None:
    vm = VM(served.rig.config)
    vm.delete()
    with pytest.raises(NotFound):
        vm.env.list()
