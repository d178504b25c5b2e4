"""``--env-file``."""

import os
from pathlib import Path

import pytest

from squib.cli.args.envfile import read_env_file
from squib.errors import InvalidArgument


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "env"


def test_lines_are_taken_as_they_are(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "from here")
    lines = [
        b"\xef\xbb\xbfA=1", b"# a comment", b"", b"  ", b"  # another", b'B="quoted" # no comment ', b"HERE",
        b"  C=x=y\r", b"EMPTY=", b"RAW=\xff\x0b\xc2\x85.", b"A=2",
    ]  # fmt: skip
    file.write_bytes(b"\n".join(lines))
    assert read_env_file(str(file)) == {
        "A": "2",
        "B": '"quoted" # no comment ',
        "HERE": "from here",
        "C": "x=y",
        "EMPTY": "",
        "RAW": os.fsdecode(b"\xff") + "\x0b\x85.",
    }


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"1A=x", "invalid environment variable '1A'"),
        (b"A B=x", "invalid environment variable 'A B'"),
        (b"A =x", "invalid environment variable 'A '"),
        (b"=x", "invalid environment variable ''"),
        (b"export A=x", "invalid environment variable 'export A'"),
        (b"A=x\0y", "the value of A contains a NUL byte"),
        (b"NOT_SET_HERE", "'NOT_SET_HERE' has no value and is not set in the local environment"),
        (b"\xff=x", "invalid environment variable"),
    ],
)
def test_a_bad_line_is_named_by_its_number(line: bytes, said: str, file: Path) -> None:
    file.write_bytes(b"OK=1\n# comment\n" + line + b"\nOK=2\n")
    with pytest.raises(InvalidArgument) as caught:
        read_env_file(str(file))
    assert f"--env-file: {file}, line 3: " in caught.value.message
    assert said in caught.value.message


@pytest.mark.parametrize(("name", "said"), [("nosuch", "No such file"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read_is_named(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=said):
        read_env_file(str(tmp_path / name))
