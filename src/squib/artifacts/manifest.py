"""What the cache stores about contents (`Manifest`) and names (`Pointer`)."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, ValidationError

from squib.artifacts.stamp import Stamp
from squib.errors import InvalidArgument
from squib.host import files
from squib.models import StoredModel

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]

M = TypeVar("M", bound=StoredModel)


class StoredFile(StoredModel):
    """A file of an artifact.

    ``path`` is relative to the artifact's directory.
    """

    path: Annotated[str, Field(pattern=r"^[^/\x00]+(/[^/\x00]+)*$")]
    digest: Digest
    stamp: Stamp


class Manifest(StoredModel):
    """What a directory of the cache holds.

    ``info`` holds facts about the content that its builder adds.
    """

    info: dict[str, str]
    built_at: datetime
    files: tuple[StoredFile, ...]

    @property
    def digest(self) -> str:
        """The digest of the only file, or of the list of several files.

        The list is formatted like the output of ``sha256sum``.
        """
        if len(self.files) == 1:
            return self.files[0].digest
        lines = "".join(f"{file.digest.removeprefix('sha256:')}  {file.path}\n" for file in self.files)
        return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


class Pointer(StoredModel):
    """The content that a name points to, and the recipe it was built from."""

    digest: Digest
    recipe: str
    built_at: datetime


class Unreadable(Exception):
    """A manifest or pointer exists and cannot be used.

    The text is the reason.
    """


def read(path: Path, model: type[M]) -> M:
    """Read a manifest or pointer. Raises `FileNotFoundError`, `Unreadable`."""
    try:
        with files.open_regular(path) as file:
            return model.model_validate_json(file.read())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise Unreadable(f"{path} is damaged") from error


def seal(content: Path, info: dict[str, str]) -> Manifest:
    """Make all files below ``content`` read-only, flush them, and list them.

    Flushes directories too.
    """
    found = []
    paths = sorted(content.rglob("*"))
    for path in (path for path in paths if path.is_file()):
        path.chmod(0o444)
        files.sync(path)
        found.append(StoredFile(path=str(path.relative_to(content)), digest=files.sha256(path), stamp=Stamp.of(path)))
    for path in [path for path in paths if path.is_dir()]:
        files.sync(path)
    return Manifest(info=info, built_at=datetime.now(UTC), files=tuple(found))


def stamp_of(path: Path) -> Stamp | None:
    """Return the stamp of a file; ``None`` if it cannot be reached."""
    try:
        return Stamp.of(path)
    except OSError:
        return None


def find_damage(folder: Path, file: StoredFile) -> str | None:
    """Hash a file and describe its damage, or return ``None``.

    ``None`` means that the file is as it was stored.
    """
    path = folder / file.path
    try:
        found = files.sha256(path)
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    return None if found == file.digest else f"{path} is {found}, not {file.digest}"


def visible_damage(folder: Path, file: StoredFile) -> str:
    """Describe the damage to a file that shows without reading it.

    The result is empty if the file shows no damage.
    """
    path = folder / file.path
    stamp = stamp_of(path)
    if stamp is None:
        return f"{path} is missing"
    return "" if stamp.size == file.stamp.size else f"{path} has {stamp.size} bytes instead of {file.stamp.size}"


def is_digest(ref: str) -> bool:
    """Return whether a reference is meant as a digest, not as a name."""
    return ref.startswith("sha256:")


def is_valid_digest(digest: str) -> bool:
    """Return whether a digest is ``sha256:`` and 64 hex digits."""
    value = digest.removeprefix("sha256:")
    return is_digest(digest) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def check_digest(digest: str) -> str:
    """Return ``digest`` if it is valid. Otherwise raise `InvalidArgument`."""
    if not is_valid_digest(digest):
        raise InvalidArgument(f"invalid digest {digest!r}: use sha256: and 64 hex digits")
    return digest
