"""Which of the commands that `squib doctor` advises it can carry out by itself, and how."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """Run a program at this terminal."""

    argv: tuple[str, ...]


@dataclass(frozen=True)
class BuildKernel:
    rebuild: bool


@dataclass(frozen=True)
class BuildImage:
    name: str
    rebuild: bool


Step = Run | BuildKernel | BuildImage


def plan(fixes: Sequence[str], *, root: bool | None = None) -> list[Step]:
    """The steps for the commands ``fixes``: all packages in one call of apt-get, then what needs them.

    Commands of other kinds are left to the user. ``root`` is whether this process is (asked if not given).
    """
    packages: list[str] = []
    builds: list[Step] = []
    for words in (_without_sudo(shlex.split(fix)) for fix in fixes):
        match words:
            case ["apt-get", "install", *rest]:
                packages += [word for word in rest if not word.startswith("-") and word not in packages]
            case ["squib", "kernel", "build", *flags]:
                builds.append(BuildKernel("--rebuild" in flags))
            case ["squib", "image", "build", name, *flags]:
                builds.append(BuildImage(name, "--rebuild" in flags))
    if not packages:
        return builds
    is_root = os.geteuid() == 0 if root is None else root
    prefix = () if is_root else ("sudo",)
    return [
        Run((*prefix, "apt-get", "update", "-qq")),
        Run((*prefix, "apt-get", "install", "-qq", "-y", "--no-install-recommends", *packages)),
        *builds,
    ]


def _without_sudo(words: list[str]) -> list[str]:
    return words[1:] if words[:1] == ["sudo"] else words
