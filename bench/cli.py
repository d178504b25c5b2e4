"""Measure `squib` as a whole process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from squib.paths import Home


async def time_squib(home: Home, arguments: Sequence[str]) -> float:
    """Return how long a run of `squib` takes, in seconds.

    Raises `subprocess.CalledProcessError`.
    """
    script = Path(sys.executable).with_name("squib")
    program = [str(script)] if script.exists() else [sys.executable, "-m", "squib"]
    return await asyncio.to_thread(_time, [*program, *arguments], _environment(home))


def _environment(home: Home) -> dict[str, str]:
    """Return an environment in which squib runs as it is installed.

    Python may write bytecode, and squib uses the bench's engine.
    """
    left_out = ("SQUIB_URL", "SQUIB_TOKEN", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return kept | {"SQUIB_HOME": str(home.root)}


def _time(argv: Sequence[str], env: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start
