"""Inspect's own suite for sandboxes, on squib's adapter: as root, and as a user of the guest."""

from collections.abc import AsyncIterator, Iterator

import pytest
from inspect_ai.util._sandbox.self_check import *  # noqa: F403

from squib import VM, AsyncVM
from squib.integrations.inspect import SquibSandboxConfig, SquibSandboxEnvironment
from squib.paths import Home

pytestmark = pytest.mark.anyio

ROOT_MAY = "root may read and write every file, whatever its permission bits are"
KNOWN_DIFFERENCES = {
    "root": {
        "test_read_file_not_allowed": ROOT_MAY,
        "test_write_text_file_without_permissions": ROOT_MAY,
        "test_write_binary_file_without_permissions": ROOT_MAY,
    },
    "agent": {},
}


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def vm(home: Home) -> Iterator[VM]:
    with VM() as vm:
        vm.run(["useradd", "--create-home", "agent"], check=True)
        yield vm


@pytest.fixture(params=["root", "agent"])
async def sandbox_env(vm: VM, request: pytest.FixtureRequest) -> AsyncIterator[SquibSandboxEnvironment]:
    user = request.param
    if reason := KNOWN_DIFFERENCES[user].get(request.node.originalname):
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    own = await AsyncVM.from_id(vm.vm_id)
    environment = SquibSandboxEnvironment(own, SquibSandboxConfig(user=user, working_dir=f"/workspace-{user}"))
    await environment.make_working_dir()
    yield environment
    await own.close()
