from pathlib import Path

import pytest

from squib.errors import ToolFailed
from squib.host import proc
from tests.fakes.tools import ToolBox


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToolBox:
    return ToolBox(tmp_path, monkeypatch)


@pytest.mark.anyio
async def test_lines_of_standard_error_are_passed_on_and_still_returned(tools: ToolBox) -> None:
    tools.add("talker", "cat; printf 'one\\ntwo\\nrest' >&2")
    lines: list[str] = []
    done = await proc.run(["talker"], stdin=b"input", on_stderr_line=lines.append)
    assert lines == ["one", "two", "rest"]
    assert (done.stdout, done.stderr) == (b"input", b"one\ntwo\nrest")


@pytest.mark.anyio
async def test_a_line_is_passed_on_while_the_tool_runs(tools: ToolBox, tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    tools.add("talker", f'echo hello >&2; until [ -e "{heard}" ]; do :; done')
    await proc.run(["talker"], on_stderr_line=lambda _: heard.touch(), timeout_s=5)


@pytest.mark.anyio
async def test_a_tool_that_fails_says_why_with_its_lines_passed_on_too(tools: ToolBox) -> None:
    tools.add("talker", "echo broken >&2; exit 4")
    lines: list[str] = []
    with pytest.raises(ToolFailed, match="status 4") as caught:
        await proc.run(["talker"], on_stderr_line=lines.append)
    assert lines == ["broken"]
    assert caught.value.detail == "broken"


def test_data_goes_through_a_filter(tools: ToolBox) -> None:
    tools.add("upper", "tr a-z A-Z")
    assert proc.pipe_through(["upper"], b"abc") == b"ABC"
    tools.add("broken", "echo no >&2; exit 2")
    with pytest.raises(ToolFailed, match="broken exited with status 2"):
        proc.pipe_through(["broken"], b"abc")
