"""``squib exec --json`` with output that is not text."""

from base64 import b64decode

from tests.unit.cli.conftest import Squib


def test_output_that_is_not_utf8_is_given_exactly_as_base64(squib: Squib) -> None:
    result = squib("exec", "--json", "web", "echo", "a\udcff").json
    assert result["stdout"] == "a\ufffd\n"
    assert b64decode(result["stdout_base64"]) == b"a\xff\n"
    assert "stderr_base64" not in result


def test_text_is_given_once(squib: Squib) -> None:
    result = squib("exec", "--json", "web", "err", "é").json
    assert (result["stdout"], result["stderr"]) == ("", "é\n")
    assert not {"stdout_base64", "stderr_base64"} & result.keys()
