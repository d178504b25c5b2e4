"""squib's kernel: Debian's cloud kernel and the modules for a guest's boot."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import shutil
import tarfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath

from squib.artifacts.building import Build, no_progress
from squib.artifacts.cache import Artifact, ArtifactCache, Entry
from squib.artifacts.mmdebstrap import SUITE, bootstrap
from squib.errors import ToolFailed
from squib.kernels import bzimage, modules
from squib.models import OnProgress, Progress
from squib.paths import Home

DEFAULT_KERNEL = "debian-cloud"
_PACKAGE = "linux-image-cloud-amd64"
_RECIPE_VERSION = 1

_BZIMAGE = "bzImage"
_ELF = "vmlinux"
_CONFIG = "config"
_MODULES = "modules"


@dataclass(frozen=True)
class Kernel:
    """A kernel to boot.

    ``digest`` covers squib's own kernel with all its files, but only the one file of a user's kernel. ``path`` is the
    file that boots fastest: for squib's own the plain ELF kernel, which QEMU enters through PVH. The guest then need
    not decompress it, which saves 0.5 s under TCG. ``bzimage`` is the same kernel for a VMM that needs that format.
    ``modules`` names the modules to load, and ``extra_modules`` those that some guests load after them
    (`squib.kernels.modules.EXTRA_MODULES`). ``modules_dir`` is the ``/lib/modules/<version>`` with these and their
    dependencies; if it is ``None``, everything is assumed to be built in.
    """

    version: str
    digest: str
    path: Path
    bzimage: Path | None
    modules_dir: Path | None
    modules: tuple[str, ...]
    size_bytes: int
    built_at: datetime
    config: Path | None = None
    extra_modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class KernelStore:
    """The kernels in the cache.

    Look up the current one by name, and any by digest.
    """

    def __init__(self, home: Home) -> None:
        self._cache = ArtifactCache(
            home,
            "kernel",
            home.kernels,
            build_hint="squib kernel build",
            repair_hint="squib kernel build --rebuild",
            info_keys=("version", "modules"),
        )

    def list(self) -> list[Entry]:
        """List all kernels: the current one, then those that only VMs use.

        Files are not hashed.

        The key ``version`` of ``info`` is absent if the manifest is damaged.
        """
        return self._cache.list()

    def get(self, ref: str = DEFAULT_KERNEL) -> Kernel:
        """Return a kernel by name or digest.

        Its files must match their stamps.

        Raises `NotFound`, `ImageCorrupt`.
        """
        return _kernel(self._cache.get(ref))

    def verify(self, ref: str = DEFAULT_KERNEL) -> Kernel:
        """Return a kernel as `get` does, but hash its files."""
        return _kernel(self._cache.verify(ref))

    def content(self, digest: str) -> Artifact:
        """Return the files of the kernel with this digest. Raises `NotFound`, `ImageCorrupt`."""
        return self._cache.get(digest)

    def add(self, digest: str, content: Path, info: dict[str, str]) -> None:
        """Store a kernel that was built elsewhere; its directory is taken.

        Raises `ImageCorrupt` if it is not the kernel with this digest.
        """
        self._cache.add(digest, content, info)

    def named_digests(self) -> set[str]:
        """Return the digests of the kernels that have a name."""
        return self._cache.named_digests()

    def boot_paths(self) -> set[Path]:
        """Return the `Kernel.path` of every kernel in the cache."""
        return {self._cache.folder(entry.digest) / _ELF for entry in self._cache.list() if entry.digest}

    async def ensure(self, on_progress: OnProgress = no_progress, *, rebuild: bool = False) -> Kernel:
        """Return squib's kernel; fetch it if absent or of another recipe.

        With ``rebuild``, fetches the newest. Steps: ``bootstrap: …``, ``modules``, ``digest``.

        Raises `ToolFailed`, `DependencyMissing`, `DiskFull`, `ImageCorrupt`.
        """
        return _kernel(await self._cache.ensure(DEFAULT_KERNEL, _recipe_key(), _make, on_progress, rebuild=rebuild))

    def remove(self, ref: str = DEFAULT_KERNEL) -> None:
        """Remove a kernel by name or digest.

        The caller checks that no VM uses it.

        Raises `NotFound`.
        """
        self._cache.remove(ref)

    def prune(self, *, keep: Collection[str] = ()) -> None:
        """Remove unnamed kernels whose digests are not in ``keep``."""
        self._cache.prune(keep=keep)


def _kernel(artifact: Artifact) -> Kernel:
    folder = artifact.folder
    return Kernel(
        version=artifact.info["version"],
        digest=artifact.digest,
        path=folder / _ELF,
        bzimage=folder / _BZIMAGE,
        modules_dir=folder / _MODULES,
        modules=tuple(artifact.info["modules"].split()),
        size_bytes=artifact.size_bytes,
        built_at=artifact.built_at,
        config=folder / _CONFIG,
        extra_modules={name: tuple(artifact.info.get(_info_key(name), "").split()) for name in modules.EXTRA_MODULES},
    )


def _recipe_key() -> str:
    recipe = [_RECIPE_VERSION, SUITE, _PACKAGE, modules.GUEST_MODULES, sorted(modules.EXTRA_MODULES.items())]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()


async def _make(build: Build, target: Path) -> dict[str, str]:
    scratch = build.scratch()
    package = scratch / "package.tar"
    with package.open("wb") as tar:
        await bootstrap(build, variant="extract", include=[_PACKAGE], stdout=tar.fileno())
    build.report(Progress(step="modules"))
    return await asyncio.to_thread(_extract_files, package, scratch / "package", target)


def _extract_files(package: Path, unpacked: Path, target: Path) -> dict[str, str]:
    """Unpack the package, and copy the files that squib uses to ``target``.

    Returns the kernel's version and modules.
    """
    _unpack(package, unpacked)
    image = _only(unpacked, "boot/vmlinuz-*")
    data = image.read_bytes()
    version = bzimage.version(data, source=image)
    tree = _only(unpacked, f"lib/modules/{version}")
    (target / _ELF).write_bytes(bzimage.extract_elf(data, source=image))
    shutil.copyfile(image, target / _BZIMAGE)
    config = _only(unpacked, f"boot/config-{version}").read_text()
    (target / _CONFIG).write_text(config)
    (target / _MODULES).mkdir()
    shutil.copyfile(tree / "modules.builtin", target / _MODULES / "modules.builtin")
    wanted = (*modules.GUEST_MODULES, *itertools.chain.from_iterable(modules.EXTRA_MODULES.values()))
    loaded = modules.load_order(tree, wanted)
    if "CONFIG_MODULE_SIG_FORCE=y" not in config.splitlines():
        loaded = tuple(map(modules.without_signature, loaded))
    for module in loaded:
        (target / _MODULES / module.file_name).write_bytes(module.data)
    usual = [module.name for module in modules.load_order(tree, modules.GUEST_MODULES)]
    info = {"version": version, "modules": " ".join(usual)}
    for name, extra in modules.EXTRA_MODULES.items():
        found = (module.name for module in modules.load_order(tree, (*modules.GUEST_MODULES, *extra)))
        info[_info_key(name)] = " ".join(module for module in found if module not in usual)
    return info


def _info_key(name: str) -> str:
    """Return the key of a set of `EXTRA_MODULES` in the description of a cached kernel."""
    return f"{name}_modules"


def _unpack(package: Path, folder: Path) -> None:
    with tarfile.open(package) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if parts[:1] == ("usr",):
                parts = parts[1:]
            path = folder.joinpath(*parts)
            if member.isfile() and _is_part(parts, path.name) and (content := tar.extractfile(member)):
                path.parent.mkdir(parents=True, exist_ok=True)
                with content, path.open("wb") as file:
                    shutil.copyfileobj(content, file)


def _is_part(parts: tuple[str, ...], name: str) -> bool:
    if ".." in parts:
        return False
    if parts[:1] == ("boot",):
        return name.startswith(("vmlinuz-", "config-"))
    return parts[:2] == ("lib", "modules") and (name == "modules.builtin" or modules.module_name(name) is not None)


def _only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise ToolFailed(f"package {_PACKAGE} has {len(found)} files {pattern}; one was expected")
    return found[0]
