"""Ctrl-C while ``squib`` is still being imported."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

IMPORTS = ["squib.cli.main", "squib.cli.commands", "squib.cli.args.options", "asyncio"]
INTERRUPTED_IMPORT = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
sys.argv = ["squib", "ls"]
from squib.cli.entry import main
main()
"""


@pytest.mark.parametrize("name", IMPORTS)
def test_it_ends_without_a_word(name: str, tmp_path: Path) -> None:
    program = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT.format(name=name)],
        env=os.environ | {"SQUIB_HOME": str(tmp_path / "home")},
        capture_output=True,
    )
    assert program.returncode == -signal.SIGINT
    assert (program.stdout, program.stderr) == (b"", b"")
    assert not (tmp_path / "home").exists()
