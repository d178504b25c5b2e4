"""LangChain's own suite for sandboxes, on squib's adapter: as root, and as a user of the guest."""

from collections.abc import Iterator

import pytest
from langchain_tests.integration_tests import SandboxIntegrationTests

from squib.integrations.langchain import SquibSandbox
from squib.paths import Home


@pytest.mark.asyncio
class TestAsRoot(SandboxIntegrationTests):
    @pytest.fixture(scope="class")
    def sandbox(self, home: Home) -> Iterator[SquibSandbox]:
        with SquibSandbox.create(runtime="python3.13") as sandbox:
            yield sandbox


@pytest.mark.asyncio
class TestAsAUser(SandboxIntegrationTests):
    @pytest.fixture(scope="class")
    def sandbox(self, home: Home) -> Iterator[SquibSandbox]:
        with SquibSandbox.create(runtime="python3.13", user="agent") as sandbox:
            sandbox.vm.run(["useradd", "--create-home", "agent"], user="root", cwd="/", check=True)
            yield sandbox


def test_a_command_that_takes_too_long_says_so(home: Home) -> None:
    with SquibSandbox.create() as sandbox:
        answer = sandbox.execute("echo begun; sleep 60", timeout=1)
        assert answer.exit_code == 124
        assert answer.output == "begun\n\n[the command was killed after 1 s]"
        assert sandbox.id == sandbox.vm.vm_id
