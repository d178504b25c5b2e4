"""Select the fixes that ``squib doctor --fix`` runs: packages and builds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from squib.models import Fix


@dataclass(frozen=True)
class Run:
    """Run a program on this terminal."""

    argv: tuple[str, ...]


@dataclass(frozen=True)
class BuildKernel:
    """Build the kernel through the engine."""

    rebuild: bool


@dataclass(frozen=True)
class BuildImage:
    """Build an image through the engine."""

    name: str
    rebuild: bool


Step = Run | BuildKernel | BuildImage


def plan(fixes: Sequence[Fix]) -> list[Step]:
    """Plan the steps for ``fixes``: one call of apt-get, then the builds.

    Builds may need the packages. Other commands, such as those that delete files or end processes, are left to the
    user.
    """
    packages: list[str] = []
    builds: list[Step] = []
    for fix in fixes:
        match fix.argv:
            case ("apt-get", "install", *rest):
                packages += [word for word in rest if not word.startswith("-") and word not in packages]
            case ("squib", "kernel", "build", *flags):
                builds.append(BuildKernel("--rebuild" in flags))
            case ("squib", "image", "build", name, *flags):
                builds.append(BuildImage(name, "--rebuild" in flags))
    if not packages:
        return builds
    update = Fix(argv=("apt-get", "update", "-qq"), as_root=True)
    install = Fix(argv=("apt-get", "install", "-qq", "-y", "--no-install-recommends", *packages), as_root=True)
    return [Run(update.command()), Run(install.command()), *builds]
