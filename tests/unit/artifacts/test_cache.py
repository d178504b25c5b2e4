import asyncio
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from squib.artifacts.building import Build
from squib.artifacts.cache import Artifact, ArtifactCache, Maker
from squib.artifacts.manifest import Pointer
from squib.artifacts.stamp import Stamp
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
    hints = {"build_hint": "make {name}", "repair_hint": "repair {name}"}
    return ArtifactCache(home, "image", home.images, **hints, info_keys=["made"])


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


def test_the_hint_for_an_absent_artifact_builds_it(cache: ArtifactCache) -> None:
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
    assert caught.value.hint == "repair base"
    with pytest.raises(ImageCorrupt):
        await ensure(cache, make=never)
    cache.remove("base")
    assert (await ensure(cache)).folder.joinpath("rootfs").read_bytes() == b"one"
    assert cache.verify("base").digest == sha256(b"one")


@pytest.mark.anyio
@pytest.mark.parametrize("lost", ["image.json", "rootfs", ""])
async def test_a_damaged_artifact_can_be_removed_and_built_again(cache: ArtifactCache, lost: str) -> None:
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
async def test_the_error_for_a_damaged_digest_has_the_hint_of_its_name(cache: ArtifactCache) -> None:
    artifact = await ensure(cache)
    rewrite(artifact.folder / "rootfs", b"ONE")
    with pytest.raises(ImageCorrupt) as caught:
        cache.get(artifact.digest)
    assert caught.value.message.endswith("VMs made from it cannot start")
    assert caught.value.hint == "repair base"


@pytest.mark.anyio
async def test_a_write_that_sets_the_modification_time_back_is_found(cache: ArtifactCache) -> None:
    path = (await ensure(cache)).folder / "rootfs"
    rewrite(path, b"ONE", like=path.stat())
    with pytest.raises(ImageCorrupt):
        cache.get("base")


@pytest.mark.anyio
async def test_verify_finds_a_change_that_keeps_the_stamp(
    cache: ArtifactCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = (await ensure(cache)).folder / "rootfs"
    stamp = Stamp.of(path)
    rewrite(path, b"ONE")
    monkeypatch.setattr(Stamp, "of", lambda path: stamp)
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
async def test_equal_files_with_other_facts_replace_the_former_content(cache: ArtifactCache) -> None:
    async def make(build: Build, target: Path) -> dict[str, str]:
        (target / "rootfs").write_bytes(b"one")
        return {"made": "otherwise"}

    await ensure(cache)
    await ensure(cache, recipe="r2", make=make)
    assert cache.get("base").info == {"made": "otherwise"}


@pytest.mark.anyio
async def test_a_damaged_manifest_is_corrupt_and_a_rebuild_replaces_it(cache: ArtifactCache) -> None:
    artifact = await ensure(cache)
    (artifact.folder / "image.json").write_text("{")
    with pytest.raises(ImageCorrupt):
        cache.get("base")
    await cache.ensure("base", "r1", maker(rootfs=b"one"), rebuild=True)
    assert cache.get("base").digest == artifact.digest


@pytest.mark.anyio
async def test_a_damaged_pointer_is_corrupt_and_built_again_when_needed(cache: ArtifactCache, home: Home) -> None:
    artifact = await ensure(cache)
    (home.images / "names" / "base.json").write_text("{")
    with pytest.raises(ImageCorrupt, match=r"base\.json is damaged") as caught:
        cache.get("base")
    assert caught.value.hint == "repair base"
    assert (await ensure(cache)).digest == artifact.digest
    assert cache.get("base").digest == artifact.digest


def garble_pointer(home: Home, artifact: Artifact) -> None:
    (home.images / "names" / "base.json").write_bytes(b"\xff{")


def replace_pointer_by_directory(home: Home, artifact: Artifact) -> None:
    (home.images / "names" / "base.json").unlink()
    (home.images / "names" / "base.json" / "inside").mkdir(parents=True)


def point_out_of_the_cache(home: Home, artifact: Artifact) -> None:
    pointer = Pointer(digest=artifact.digest, recipe="r1", built_at=artifact.built_at)
    (home.images / "names" / "base.json").write_text(pointer.model_dump_json().replace(artifact.digest, "../../vms"))


def garble_manifest(home: Home, artifact: Artifact) -> None:
    (artifact.folder / "image.json").write_bytes(b"\xff{")


def lose_manifest(home: Home, artifact: Artifact) -> None:
    (artifact.folder / "image.json").unlink()


def replace_manifest_by_fifo(home: Home, artifact: Artifact) -> None:
    (artifact.folder / "image.json").unlink()
    os.mkfifo(artifact.folder / "image.json")


def describe_another_content(home: Home, artifact: Artifact) -> None:
    path = artifact.folder / "image.json"
    path.write_text(path.read_text().replace(artifact.digest, sha256(b"another")))


def lack_a_fact(home: Home, artifact: Artifact) -> None:
    path = artifact.folder / "image.json"
    path.write_text(path.read_text().replace('"made"', '"unmade"'))


def lose_file(home: Home, artifact: Artifact) -> None:
    (artifact.folder / "rootfs").unlink()


def truncate_file(home: Home, artifact: Artifact) -> None:
    rewrite(artifact.folder / "rootfs", b"")


def lose_content(home: Home, artifact: Artifact) -> None:
    files.remove_tree(artifact.folder)


def replace_content_by_file(home: Home, artifact: Artifact) -> None:
    files.remove_tree(artifact.folder)
    artifact.folder.write_text("not a directory")


DAMAGES = (
    garble_pointer,
    replace_pointer_by_directory,
    point_out_of_the_cache,
    garble_manifest,
    lose_manifest,
    replace_manifest_by_fifo,
    describe_another_content,
    lack_a_fact,
    lose_file,
    truncate_file,
    lose_content,
    replace_content_by_file,
)


@pytest.mark.anyio
@pytest.mark.parametrize("damage", DAMAGES)
async def test_damage_is_listed_stops_no_other_and_can_be_repaired_or_removed(
    cache: ArtifactCache, home: Home, damage: Callable[[Home, Artifact], None]
) -> None:
    artifact = await ensure(cache)
    other = await ensure(cache, "other", make=maker(rootfs=b"two"))
    (home.vms).mkdir()
    damage(home, artifact)

    named = {entry.name: entry.damage for entry in cache.list() if entry.name}
    assert named.keys() == {"base", "other"}
    assert named["base"] and not named["other"]
    with pytest.raises(ImageCorrupt) as caught:
        cache.get("base")
    assert caught.value.hint == "repair base"
    assert cache.get("other") == other
    cache.prune(keep=[artifact.digest])

    rebuilt = await cache.ensure("base", "r1", maker(rootfs=b"one"), rebuild=True)
    assert cache.verify("base").folder == rebuilt.folder == artifact.folder

    damage(home, rebuilt)
    cache.remove("base")
    assert [entry.name for entry in cache.list() if entry.name] == ["other"]
    cache.prune()
    assert [entry.name for entry in cache.list()] == ["other"]
    assert cache.get("other") == other
    assert home.vms.exists()


@pytest.mark.anyio
async def test_prune_keeps_damaged_content_that_is_in_use(cache: ArtifactCache) -> None:
    artifact = await ensure(cache)
    (artifact.folder / "image.json").write_text("{")
    await ensure(cache, recipe="r2", make=maker(rootfs=b"two"))
    cache.prune(keep=[artifact.digest])
    [_, kept] = cache.list()
    assert (kept.name, kept.digest) == ("", artifact.digest)
    assert "image.json is damaged" in kept.damage
    cache.remove(artifact.digest)
    assert [entry.name for entry in cache.list()] == ["base"]


@pytest.mark.anyio
async def test_an_artifact_can_be_removed_by_its_digest_with_its_names(cache: ArtifactCache) -> None:
    artifact = await ensure(cache, "a")
    await ensure(cache, "b")
    cache.remove(artifact.digest)
    assert cache.list() == []
    with pytest.raises(NotFound):
        cache.remove(artifact.digest)


def test_names_that_are_invalid_are_not_listed(cache: ArtifactCache, home: Home) -> None:
    (home.images / "names").mkdir(parents=True)
    (home.images / "names" / "not a name.json").write_text("{}")
    (home.images / "sha256-short").mkdir()
    assert cache.list() == []
    cache.prune()
    assert not (home.images / "sha256-short").exists()


@pytest.mark.anyio
async def test_a_content_is_flushed_before_its_pointer_is_written(
    cache: ArtifactCache, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    real = os.fsync

    def note(fd: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{fd}").readlink())
        real(fd)

    async def make(build: Build, target: Path) -> dict[str, str]:
        (target / "modules").mkdir()
        (target / "modules" / "a.ko").write_bytes(b"module")
        return {"made": "yes"}

    monkeypatch.setattr(os, "fsync", note)
    await ensure(cache, make=make)
    *content, pointer, names = flushed
    assert names == home.images / "names"
    assert pointer.parent == names
    below = [
        str(path.relative_to(home.building)).partition("/")[2] for path in content if home.building in path.parents
    ]
    manifest = below[2]
    assert below == ["content/modules/a.ko", "content/modules", manifest, "content"]
    assert manifest.startswith("content/.image.json.")
    assert content[-1] == home.images


@pytest.mark.anyio
async def test_a_manifest_of_a_former_squib_is_read_and_its_files_are_hashed_again(cache: ArtifactCache) -> None:
    artifact = await ensure(cache)
    path = artifact.folder / "image.json"
    path.write_text(artifact.manifest.model_dump_json(exclude={"files": {"__all__": {"stamp": {"ctime_ns"}}}}))
    assert "ctime_ns" not in path.read_text()
    assert cache.get("base") == artifact
    assert "ctime_ns" in path.read_text()


@pytest.mark.anyio
async def test_an_artifact_whose_stamps_cannot_be_renewed_is_used(
    cache: ArtifactCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = await ensure(cache)
    os.utime(artifact.folder / "rootfs", ns=(1, 1))

    def full(path: Path, data: bytes) -> None:
        raise files.disk_full(path)

    monkeypatch.setattr(files, "write_atomic", full)
    assert cache.get("base").digest == artifact.digest


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
async def test_concurrent_builders_share_one_result(cache: ArtifactCache) -> None:
    built = []

    async def make(build: Build, target: Path) -> dict[str, str]:
        built.append(target)
        await asyncio.sleep(0)
        return await maker(rootfs=b"one")(build, target)

    artifacts = await asyncio.gather(*(cache.ensure("base", "r1", make, rebuild=True) for _ in range(3)))
    assert len(built) == 1
    assert {artifact.digest for artifact in artifacts} == {sha256(b"one")}
