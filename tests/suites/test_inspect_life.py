"""What Inspect calls around a task and its samples."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from inspect_ai.util import OutputLimitExceededError, SandboxUnavailableError
from inspect_ai.util._sandbox.limits import override_max_exec_output_size
from inspect_ai.util._sandbox.registry import registry_find_sandboxenv

from squib import VM, InvalidArgument
from squib.integrations.inspect import SquibSandboxConfig, SquibSandboxEnvironment
from squib.paths import Home

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


def test_inspect_finds_it_by_its_entry_point() -> None:
    program = "from inspect_ai.util._sandbox.registry import registry_find_sandboxenv as f; print(f('squib').__name__)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "SquibSandboxEnvironment\n"
    assert registry_find_sandboxenv("squib") is SquibSandboxEnvironment


async def test_a_sample_has_a_vm_that_is_deleted_after_it(home: Home, tmp_path: Path) -> None:
    config = tmp_path / "squib.toml"
    config.write_text('user = "nobody"\nenv_vars = {COLOUR = "red"}\n')
    await SquibSandboxEnvironment.task_init("task", str(config))
    environments = await SquibSandboxEnvironment.sample_init("task", str(config), {})
    sandbox = environments["default"]
    said = await sandbox.exec(["sh", "-c", "id -un; pwd; echo $COLOUR"])
    assert said.stdout == "nobody\n/workspace\nred\n"
    connection = await sandbox.connection()
    assert shlex.split(connection.command)[:2] == ["squib", "exec"]
    await SquibSandboxEnvironment.sample_cleanup("task", str(config), environments, False)
    assert VM.list() == []
    with pytest.raises(SandboxUnavailableError):
        await sandbox.exec(["true"])


async def test_commands_that_cannot_start_or_print_too_much(home: Home) -> None:
    sandbox = await SquibSandboxEnvironment.start(SquibSandboxConfig())
    try:
        missing = await sandbox.exec(["no-such-program"])
        assert (missing.success, missing.returncode) == (False, 127)
        assert "no-such-program" in missing.stderr
        nowhere = await sandbox.exec(["true"], cwd="nowhere")
        assert not nowhere.success and "nowhere" in nowhere.stderr
        with override_max_exec_output_size(1024), pytest.raises(OutputLimitExceededError) as caught:
            await sandbox.exec(["sh", "-c", "yes | head -c 2048"])
        assert caught.value.truncated_output == "y\n" * 512
    finally:
        await sandbox.close()


async def test_the_cleanup_of_the_command_line_deletes_what_a_killed_run_left(home: Home) -> None:
    left = VM(project="inspect")
    other = VM()
    await SquibSandboxEnvironment.cli_cleanup(None)
    assert [info.vm_id for info in VM.list()] == [other.vm_id]
    assert left.vm_id != other.vm_id
    other.delete()


async def test_a_configuration_that_cannot_be_read_names_its_file(tmp_path: Path) -> None:
    config = tmp_path / "squib.toml"
    config.write_text("colour = 1\n")
    with pytest.raises(InvalidArgument, match="colour"):
        await SquibSandboxEnvironment.sample_init("task", str(config), {})
