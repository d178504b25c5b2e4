"""Stand-ins for host tools: small shell scripts that come first on the PATH."""

import os
import shlex
from pathlib import Path

import pytest


class ToolBox:
    """A directory of fake tools. Temporary files of builds go below it too, so that a test sees what is left."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder / "bin"
        self.scratch = folder / "tmp"
        self.folder.mkdir()
        self.scratch.mkdir()
        monkeypatch.setenv("PATH", f"{self.folder}:{os.environ['PATH']}")
        monkeypatch.setenv("TMPDIR", str(self.scratch))
        monkeypatch.setattr("tempfile.tempdir", None)

    def add(self, name: str, script: str) -> None:
        """A tool that is this shell script. It also notes its arguments, a line for each run, in ``calls(name)``."""
        log = shlex.quote(str(self.folder / f"{name}.calls"))
        path = self.folder / name
        path.write_text(f'#!/bin/sh\necho "$*" >>{log}\n{script}\n')
        path.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        log = self.folder / f"{name}.calls"
        return log.read_text().splitlines() if log.exists() else []

    def add_image_tools(self, content: str = "rootfs") -> None:
        """An mmdebstrap that prints ``content`` as its tar and a sqfstar that stores its input behind ``hsqs``."""
        self.add("unshare", "exit 0")
        self.add("newuidmap", "exit 0")
        self.add("mmdebstrap", f"echo 'I: running apt-get update...' >&2; printf %s {shlex.quote(content)}")
        self.add("sqfstar", 'for target; do :; done; { printf hsqs; cat; } >"$target"')
