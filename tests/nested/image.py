"""The root filesystem of the nested VM: Debian with QEMU, and the packages of squib and its tests."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from squib import Images
from squib.paths import Home

ROOT = Path(__file__).parents[2]
SITE = "/usr/local/lib/python3.13/dist-packages"
"""Where Debian's Python looks for packages that are not Debian's, also with ``-I``."""

_SUITE = "trixie"
_DEBIAN = ("e2fsprogs", "iproute2", "procps", "python3", "qemu-system-x86", "squashfs-tools", "strace")
_TEST_PACKAGES = ("hatchling", "pytest")
_WHEELS = ("--python-version=3.13", "--platform=manylinux2014_x86_64", "--platform=manylinux_2_28_x86_64")
_RECIPE_VERSION = 1


def ensure_image(home: Home) -> Path:
    """Return the image from the cache; build it if it is absent or its recipe has changed.

    Building takes one to three minutes.
    """
    packages = _python_packages()
    recipe = json.dumps([_RECIPE_VERSION, _SUITE, _DEBIAN, _WHEELS, packages])
    folder = home.cache / "nested"
    image = folder / f"{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.squashfs"
    if image.exists():
        return image
    print(f"building {image}", flush=True)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = _build(Path(scratch), packages)
        for old in folder.glob("*.squashfs"):
            old.unlink()
        built.rename(image)
    return image


def _build(scratch: Path, packages: list[str]) -> Path:
    site, tar = scratch / "site", scratch / "root.tar"
    pip_install(site, [*_WHEELS, "--only-binary=:all:", *packages])
    hooks = [f"copy-in {site}/. {SITE}", f'chroot "$1" python3 -m compileall -q {SITE}']
    subprocess.run(
        [
            "mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(_DEBIAN)}",
            *(f"--customize-hook={hook}" for hook in hooks), _SUITE, str(tar),
        ],
        check=True, cwd=scratch,
    )  # fmt: skip
    return Images().pack(tar, scratch / "root.squashfs")


def pip_install(target: Path, arguments: list[str]) -> None:
    """Install into the directory ``target`` with this environment's pip."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    subprocess.run([*pip, "--target", str(target), *arguments], check=True)


def _python_packages() -> list[str]:
    """What squib needs, and what runs its tests on VMs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    tests = [name for name in project["dependency-groups"]["dev"] if re.split("[<=>]", name)[0] in _TEST_PACKAGES]
    return sorted(project["project"]["dependencies"] + tests)
