import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from squib.artifacts.building import Build
from squib.artifacts.cache import Artifact, ArtifactCache, Maker
from squib.errors import ImageCorrupt, InvalidArgument, NotFound
from squib.host import files
from squib.paths import Home


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def maker(**contents: bytes) -> Maker:
    async def make(build: Build, target: Path) -> dict[str, str]:
        for name, data in contents.items():
            (target / name).write_bytes(data)
        return {"made": "yes"}

    return make


async def never(build: Build, target: Path) -> dict[str, str]:
    raise AssertionError("built again")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def cache(home: Home) -> ArtifactCache:
    return ArtifactCache(home, "image", home.images, build_hint="make {name}", repair_hint="mend {name}")


async def ensure(cache: ArtifactCache, name: str = "base", recipe: str = "r1", make: Maker | None = None) -> Artifact:
    return await cache.ensure(name, recipe, make or maker(rootfs=b"one"))


def rewrite(path: Path, data: bytes, *, like: os.stat_result | None = None) -> None:
    path.chmod(0o644)
    path.write_bytes(data)
    if like is not None:
        os.utime(path, ns=(like.st_atime_ns, like.st_mtime_ns))


@pytest.mark.anyio
async def test_one_file_is_stored_under_its_own_digest_and_read_only(cache: ArtifactCache, home: Home) -> None:
    artifact = await ensure(cache)
    rootfs = home.images / sha256(b"one").replace(":", "-") / "rootfs"
    assert artifact.digest == sha256(b"one")
    assert artifact.folder == rootfs.parent
    assert rootfs.read_bytes() == b"one"
    assert rootfs.stat().st_mode & 0o777 == 0o444
    assert (artifact.size_bytes, artifact.info) == (3, {"made": "yes"})
    assert list(home.building.iterdir()) == []


@pytest.mark.anyio
async def test_several_files_have_the_digest_of_their_list(cache: ArtifactCache) -> None:
    artifact = await ensure(cache, make=maker(b=b"two", a=b"one"))
    listing = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in (("a", b"one"), ("b", b"two")))
    assert artifact.digest == sha256(listing.encode())


@pytest.mark.anyio
async def test_it_is_built_once(cache: ArtifactCache) -> None:
    first = await ensure(cache)
    assert await ensure(cache, make=never) == first
    assert cache.get("base") == first
    assert [artifact.name for artifact in cache.list()] == ["base"]


@pytest.mark.anyio
async def test_another_recipe_builds_again_and_the_old_content_stays_until_pruned(cache: ArtifactCache) -> None:
    old = await ensure(cache)
    new = await ensure(cache, recipe="r2", make=maker(rootfs=b"two"))
    assert cache.get("base").digest == new.digest != old.digest
    assert cache.get(old.digest).folder == old.folder
    cache.prune(keep=[old.digest])
    assert cache.get(old.digest).name == old.digest
    cache.prune()
    with pytest.raises(NotFound):
        cache.get(old.digest)
    assert cache.get("base").digest == new.digest


@pytest.mark.anyio
async def test_rebuild_builds_again_from_the_same_recipe(cache: ArtifactCache) -> None:
    await ensure(cache)
    again = await cache.ensure("base", "r1", maker(rootfs=b"newer"), rebuild=True)
    assert cache.get("base").digest == again.digest == sha256(b"newer")


@pytest.mark.anyio
async def test_two_names_share_one_content(cache: ArtifactCache) -> None:
    first, second = await ensure(cache, "a"), await ensure(cache, "b")
    assert first.folder == second.folder
    cache.remove("a")
    assert cache.get("b").digest == second.digest
    cache.remove("b")
    assert not first.folder.exists()


def test_what_is_absent_is_not_found_and_the_hint_builds_it(cache: ArtifactCache) -> None:
    with pytest.raises(NotFound) as caught:
        cache.get("base")
    assert caught.value.hint == "make base"
    with pytest.raises(NotFound):
        cache.remove("base")
    with pytest.raises(NotFound):
        cache.get(f"sha256:{'0' * 64}")


@pytest.mark.parametrize("ref", ["../base", "", "a/b", "sha256:../../etc", "sha256:" + "A" * 64])
def test_a_reference_that_is_neither_name_nor_digest_is_refused(cache: ArtifactCache, ref: str) -> None:
    with pytest.raises(InvalidArgument):
        cache.get(ref)


@pytest.mark.anyio
async def test_a_touched_file_is_hashed_once_and_then_trusted_again(
    cache: ArtifactCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = await ensure(cache)
    os.utime(artifact.folder / "rootfs", ns=(1, 1))
    hashed = []
    real = files.sha256

    def count(path: Path) -> str:
        hashed.append(path)
        return real(path)

    monkeypatch.setattr(files, "sha256", count)
    assert cache.get("base").digest == artifact.digest
    assert cache.get("base").digest == artifact.digest
    assert hashed == [artifact.folder / "rootfs"]


@pytest.mark.anyio
async def test_a_changed_file_is_corrupt_and_the_hint_replaces_it(cache: ArtifactCache) -> None:
    rewrite((await ensure(cache)).folder / "rootfs", b"ONE")
    with pytest.raises(ImageCorrupt) as caught:
        cache.get("base")
    assert caught.value.hint == "mend base"
    with pytest.raises(ImageCorrupt):
        await ensure(cache, make=never)
    cache.remove("base")
    assert (await ensure(cache)).folder.joinpath("rootfs").read_bytes() == b"one"
    assert cache.verify("base").digest == sha256(b"one")


@pytest.mark.anyio
@pytest.mark.parametrize("lost", ["image.json", "rootfs", ""])
async def test_whatever_is_damaged_can_be_removed_and_built_again(cache: ArtifactCache, lost: str) -> None:
    files.remove_tree((await ensure(cache)).folder / lost)
    with pytest.raises(ImageCorrupt):
        cache.get("base")
    cache.remove("base")
    assert await ensure(cache) == cache.verify("base")


@pytest.mark.anyio
async def test_a_missing_file_is_corrupt(cache: ArtifactCache) -> None:
    ((await ensure(cache)).folder / "rootfs").unlink()
    with pytest.raises(ImageCorrupt, match="is missing"):
        cache.get("base")


@pytest.mark.anyio
async def test_a_damaged_file_that_is_asked_for_by_digest_names_what_builds_another(cache: ArtifactCache) -> None:
    artifact = await ensure(cache)
    rewrite(artifact.folder / "rootfs", b"ONE")
    with pytest.raises(ImageCorrupt) as caught:
        cache.get(artifact.digest)
    assert caught.value.hint == "VMs that were made from it cannot start any more; mend base"


@pytest.mark.anyio
async def test_verify_finds_a_change_that_keeps_the_stamp(cache: ArtifactCache) -> None:
    path = (await ensure(cache)).folder / "rootfs"
    rewrite(path, b"ONE", like=path.stat())
    assert cache.get("base").digest == sha256(b"one")
    with pytest.raises(ImageCorrupt):
        cache.verify("base")


@pytest.mark.anyio
async def test_a_rebuild_replaces_damaged_content_of_the_same_digest(cache: ArtifactCache) -> None:
    path = (await ensure(cache)).folder / "rootfs"
    rewrite(path, b"ONE")
    await cache.ensure("base", "r1", maker(rootfs=b"one"), rebuild=True)
    assert cache.verify("base").folder.joinpath("rootfs").read_bytes() == b"one"


@pytest.mark.anyio
async def test_equal_files_that_mean_something_else_replace_the_former(cache: ArtifactCache) -> None:
    async def make(build: Build, target: Path) -> dict[str, str]:
        (target / "rootfs").write_bytes(b"one")
        return {"made": "otherwise"}

    await ensure(cache)
    await ensure(cache, recipe="r2", make=make)
    assert cache.get("base").info == {"made": "otherwise"}


@pytest.mark.anyio
async def test_a_damaged_record_is_corrupt_and_a_damaged_name_is_built_again(cache: ArtifactCache, home: Home) -> None:
    artifact = await ensure(cache)
    (artifact.folder / "image.json").write_text("{")
    with pytest.raises(ImageCorrupt):
        cache.get("base")
    assert cache.list() == []
    await cache.ensure("base", "r1", maker(rootfs=b"one"), rebuild=True)
    assert cache.get("base").digest == artifact.digest
    (home.images / "names" / "base.json").write_text("{")
    assert cache.list() == []
    assert (await ensure(cache)).digest == artifact.digest


@pytest.mark.anyio
async def test_a_failed_build_leaves_nothing_and_the_next_one_works(cache: ArtifactCache, home: Home) -> None:
    async def fail(build: Build, target: Path) -> dict[str, str]:
        (target / "rootfs").write_bytes(b"half")
        raise InvalidArgument("no")

    with pytest.raises(InvalidArgument):
        await ensure(cache, make=fail)
    assert list(home.building.iterdir()) == []
    assert cache.list() == []
    assert (await ensure(cache)).digest == sha256(b"one")


@pytest.mark.anyio
async def test_who_comes_second_takes_the_result_of_the_first(cache: ArtifactCache) -> None:
    built = []

    async def make(build: Build, target: Path) -> dict[str, str]:
        built.append(target)
        await asyncio.sleep(0)
        return await maker(rootfs=b"one")(build, target)

    artifacts = await asyncio.gather(*(cache.ensure("base", "r1", make, rebuild=True) for _ in range(3)))
    assert len(built) == 1
    assert {artifact.digest for artifact in artifacts} == {sha256(b"one")}
