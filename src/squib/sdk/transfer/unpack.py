"""Unpacking an archive that a guest sends, so that nothing of it lands outside the target, whatever it names.

No path of the archive is ever given to the kernel as a whole: each component is opened (or made) relative to the
directory before it, and never through a symbolic link. What an archive may not hold is refused with an error that names
the entry; what was unpacked before that stays.

A symbolic link may climb (``..``) only with the first components of where it leads, and not past the target. Then it
stays inside whatever links of the archive it goes through: `a/..` is not where `a` is, if `a` is a link.

FIFOs are refused as devices are: who opens one that nobody writes to hangs.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from squib.errors import ArchiveRefused, PermissionDenied
from squib.sdk.result import Copied
from squib.sdk.transfer.localfiles import CHECK_ROOM_EVERY, check_room, escaped, local_errors
from squib.sdk.transfer.tar import MAX_DEPTH, Kind, Member, Readable, TarReader, refused

_MAX_PATH = 4096
_MAX_NAME = 255
_MAX_LINK = 4095
_MAX_REMEMBERED = 128 << 20  # bytes, for what directories are to become at the end
_REMEMBERED_EACH = 250  # what Python takes for one, besides its path
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_BELOW = _DIRECTORY | os.O_NOFOLLOW

Names = tuple[bytes, ...]


@dataclass(frozen=True)
class Limits:
    """How much an archive may hold: entries, and bytes of files (``None``: as much as the disk has room for)."""

    max_entries: int = 500_000
    max_bytes: int | None = None


def unpack(
    source: Readable,
    target: str | os.PathLike[str],
    *,
    keep_owner: bool = False,
    unsafe_links: bool = False,
    new_target: bool = False,
    limits: Limits | None = None,
) -> Copied:
    """Unpack the archive that ``source`` reads below the directory ``target``, which must exist. Blocks.

    Files get the permission bits, without set-id, and the time of the archive, and take their names in one step: what
    was there is replaced, links are not followed. Directories are kept where they exist, and get mode and time too; the
    target itself only if it is a ``new_target``. Owners are the caller's, or with ``keep_owner`` the numbers of the
    archive, which needs root. Symbolic links that lead out of the target are refused, or with ``unsafe_links`` made as
    they are.

    On the target's disk a twentieth, or 1 GiB if that is less, stays free.

    Raises `ArchiveRefused` for what may not be unpacked, `TransferFailed` if the guest could not send all, `DiskFull`,
    `PermissionDenied` and other `FileError` for what the operating system refuses.
    """
    if keep_owner and os.geteuid() != 0:
        raise PermissionDenied(
            "only root can give files to other users", hint="leave --keep-owner out, or run it as root"
        )
    with local_errors(target):
        tree = _Tree(Path(target))
    with contextlib.closing(tree):
        return _Unpacking(tree, TarReader(source), keep_owner, unsafe_links, limits or Limits()).run(new_target)


class _Unpacking:
    """One archive on its way."""

    def __init__(
        self,
        tree: _Tree,
        archive: TarReader,
        keep_owner: bool,
        unsafe_links: bool,
        limits: Limits,
    ) -> None:
        self._tree = tree
        self._archive = archive
        self._keep_owner = keep_owner
        self._unsafe_links = unsafe_links
        self._limits = limits
        self._entries = 0
        self._bytes = 0
        self._directories: dict[bytes, tuple[int, int, int, int]] = {}
        self._remembered = 0
        self._files: set[tuple[int, int]] = set()

    def run(self, new_target: bool) -> Copied:
        for member in self._archive:
            self._count(member)
            names = _split(member)
            with local_errors(member.path):
                self._make(member, names)
        if not new_target:
            self._directories.pop(b"", None)
        self._finish_directories()
        return Copied(self._entries, self._bytes)

    def _count(self, member: Member) -> None:
        self._entries += 1
        if self._entries > self._limits.max_entries:
            raise ArchiveRefused(f"the archive has more than {self._limits.max_entries} entries")
        limit = self._limits.max_bytes
        if limit is not None and self._bytes + member.size > limit:
            raise ArchiveRefused(f"the files of the archive have more than {limit} bytes")
        self._tree.check_room(member, member.size)

    def _make(self, member: Member, names: Names) -> None:
        if member.kind is Kind.DIRECTORY:
            self._make_directory(member, names)
            return
        parent = self._tree.directory(member, names[:-1])
        with _temporary_name(parent) as temporary:
            if member.kind is Kind.FILE:
                self._write_file(member, parent, temporary)
            elif member.kind is Kind.SYMLINK:
                self._make_symlink(member, names, parent, temporary)
            else:
                self._make_hard_link(member, parent, temporary)
            try:
                os.rename(temporary, names[-1], src_dir_fd=parent, dst_dir_fd=parent)
            except IsADirectoryError:
                raise refused(member.path, "a directory has this name already") from None

    def _make_directory(self, member: Member, names: Names) -> None:
        fd = self._tree.directory(member, names)
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            os.fchmod(fd, mode | stat.S_IRWXU)
        path = b"/".join(names)
        if path not in self._directories:
            self._remembered += len(path) + _REMEMBERED_EACH
            if self._remembered > _MAX_REMEMBERED:
                raise ArchiveRefused(f"the archive has too many directories: more than {len(self._directories)}")
        self._directories[path] = (member.mode, member.mtime_ns, member.uid, member.gid)

    def _write_file(self, member: Member, parent: int, name: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            left, checked = member.size, member.size
            for piece in self._archive.content():
                _write_all(fd, piece)
                self._bytes += len(piece)
                left -= len(piece)
                if checked - left >= CHECK_ROOM_EVERY:
                    self._tree.check_room(member, left)
                    checked = left
            self._set_attributes(fd, member.mode, member.mtime_ns, member.uid, member.gid)
            status = os.fstat(fd)
            self._files.add((status.st_dev, status.st_ino))
        finally:
            os.close(fd)

    def _make_symlink(self, member: Member, names: Names, parent: int, name: bytes) -> None:
        link = member.link
        if not link or b"\0" in link or len(link) > _MAX_LINK:
            raise refused(member.path, f"it is a symbolic link to '{escaped(link)}'")
        if not self._unsafe_links and not _stays_inside(link, len(names) - 1):
            raise refused(
                member.path,
                f"it is a symbolic link that leads out of the directory, to '{escaped(link)}'",
                hint="--unsafe-links (in Python: unsafe_links=True) copies such links as they are",
            )
        os.symlink(link, name, dir_fd=parent)
        os.utime(name, ns=(member.mtime_ns, member.mtime_ns), dir_fd=parent, follow_symlinks=False)
        if self._keep_owner:
            os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)

    def _make_hard_link(self, member: Member, parent: int, name: bytes) -> None:
        no_file = refused(member.path, f"it is a hard link to '{escaped(member.link)}', which is no file before it")
        *way, last = _split_path(member.link) or [b""]
        if not last or b".." in (*way, last) or b"\0" in member.link or member.link.startswith(b"/"):
            raise no_file
        with self._tree.existing(way) as directory:
            try:
                status = os.stat(last, dir_fd=directory, follow_symlinks=False) if directory is not None else None
            except FileNotFoundError:
                status = None
            if status is None or (status.st_dev, status.st_ino) not in self._files or not stat.S_ISREG(status.st_mode):
                raise no_file
            os.link(last, name, src_dir_fd=directory, dst_dir_fd=parent, follow_symlinks=False)

    def _finish_directories(self) -> None:
        """Give directories their modes and times: what is in one before itself, as that may close it."""
        for path in sorted(self._directories, reverse=True):
            with local_errors(path or b"."):
                self._set_attributes(self._tree.reopen(_split_path(path)), *self._directories[path])

    def _set_attributes(self, fd: int, mode: int, mtime_ns: int, uid: int, gid: int) -> None:
        if self._keep_owner:
            os.chown(fd, uid, gid)
        os.fchmod(fd, mode)
        os.utime(fd, ns=(mtime_ns, mtime_ns))


class _Tree:
    """The directories below the target. Those on the way to the last one are kept open: archives are in their order."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._names: list[bytes] = []
        self._fds = [os.open(target, _DIRECTORY)]

    def close(self) -> None:
        self._leave(0)
        os.close(self._fds.pop())

    def directory(self, member: Member, names: Sequence[bytes]) -> int:
        """The directory ``names`` below the target, made where missing. Good until the next call."""
        self._leave(self._common(names))
        for name in names[len(self._names) :]:
            try:
                fd = _open_or_make(self._fds[-1], name)
            except NotADirectoryError:
                raise refused(member.path, self._in_the_way(name)) from None
            self._fds.append(fd)
            self._names.append(name)
        return self._fds[-1]

    def reopen(self, names: Sequence[bytes]) -> int:
        """A directory that was there before. Good until the next call."""
        self._leave(self._common(names))
        for name in names[len(self._names) :]:
            self._fds.append(os.open(name, _BELOW, dir_fd=self._fds[-1]))
            self._names.append(name)
        return self._fds[-1]

    @contextlib.contextmanager
    def existing(self, names: Sequence[bytes]) -> Iterator[int | None]:
        """The directory ``names``, or ``None`` if there is none."""
        with contextlib.ExitStack() as stack:
            fd: int | None = self._fds[0]
            for name in names:
                try:
                    fd = os.open(name, _BELOW, dir_fd=fd)
                except (FileNotFoundError, NotADirectoryError):
                    fd = None
                    break
                stack.callback(os.close, fd)
            yield fd

    def check_room(self, member: Member, size: int) -> None:
        """Raises `DiskFull` if the disk would have too little room after ``size`` bytes more of ``member``."""
        what = f"'{escaped(member.path)}' in the archive, of {member.size} bytes,"
        check_room(self._fds[0], size, what, self._target)

    def _common(self, names: Sequence[bytes]) -> int:
        for depth, (mine, other) in enumerate(zip(self._names, names, strict=False)):
            if mine != other:
                return depth
        return min(len(self._names), len(names))

    def _leave(self, depth: int) -> None:
        """Close the directories below that of this depth."""
        while len(self._names) > depth:
            self._names.pop()
            os.close(self._fds.pop())

    def _in_the_way(self, name: bytes) -> str:
        place = escaped(b"/".join([*self._names, name]))
        mode = os.stat(name, dir_fd=self._fds[-1], follow_symlinks=False).st_mode
        what = "a symbolic link, and nothing is unpacked through one" if stat.S_ISLNK(mode) else "no directory"
        return f"'{place}' is {what}"


def _split(member: Member) -> Names:
    """The components of a member's name; none for the target itself."""
    path = member.path
    if not path or b"\0" in path:
        raise refused(path, "this is no name")
    if path.startswith(b"/"):
        raise refused(path, "its name is absolute")
    if len(path) > _MAX_PATH:
        raise refused(path, f"its name has more than {_MAX_PATH} bytes")
    if path.endswith(b"/") and member.kind is not Kind.DIRECTORY:
        raise refused(path, "it has the name of a directory and is none")
    names = _split_path(path)
    if b".." in names:
        raise refused(path, "its name leads out of the directory, or might: it has '..'")
    if len(names) > MAX_DEPTH:
        raise refused(path, f"it is more than {MAX_DEPTH} directories deep")
    if any(len(name) > _MAX_NAME for name in names):
        raise refused(path, f"a part of its name has more than {_MAX_NAME} bytes")
    if not names and member.kind is not Kind.DIRECTORY:
        raise refused(path, "only a directory can have this name")
    return names


def _split_path(path: bytes) -> Names:
    return tuple(name for name in path.split(b"/") if name not in (b"", b"."))


def _stays_inside(link: bytes, depth: int) -> bool:
    """Whether a symbolic link in a directory ``depth`` below the target leads to something below the target."""
    names = _split_path(link)
    climbs = next((count for count, name in enumerate(names) if name != b".."), len(names))
    return not link.startswith(b"/") and climbs <= depth and b".." not in names[climbs:]


def _open_or_make(parent: int, name: bytes) -> int:
    try:
        return os.open(name, _BELOW, dir_fd=parent)
    except FileNotFoundError:
        os.mkdir(name, dir_fd=parent)
        return os.open(name, _BELOW, dir_fd=parent)


@contextlib.contextmanager
def _temporary_name(directory: int) -> Iterator[bytes]:
    """A name in ``directory`` that is free. What has it after the block is removed."""
    name = f".squib-{secrets.token_hex(8)}".encode()
    try:
        yield name
    finally:
        with contextlib.suppress(FileNotFoundError):  # rename() took it, but not from a second link to the same file
            os.unlink(name, dir_fd=directory)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
