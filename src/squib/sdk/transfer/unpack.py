"""Unpack an untrusted archive, and write only inside the target directory.

No full path of the archive is passed to the kernel. Each component is opened or created relative to its parent
directory, and symbolic links are never followed. A forbidden entry raises an error that names it; entries unpacked
before it stay.

In the target of a symbolic link, ``..`` is allowed only in the leading components, and only up to the target directory.
``..`` after a name is rejected: if ``a`` is a symbolic link, ``a/..`` is not the directory that contains ``a``.

FIFOs are rejected, like devices: opening a FIFO without a writer hangs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from squib.errors import ArchiveRefused, PermissionDenied
from squib.sdk.result import CopyResult
from squib.sdk.transfer.localfiles import CHECK_ROOM_EVERY, check_room, escaped, local_errors, write_sparse
from squib.sdk.transfer.tar import MAX_DEPTH, Kind, Member, Readable, TarReader, refused

_MAX_PATH = 4096
_MAX_NAME = 255
_MAX_LINK = 4095
_MAX_REMEMBERED = 128 << 20  # bytes, for the attributes that directories get at the end
_REMEMBERED_EACH = 250  # bytes of Python objects per directory, without its path
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_BELOW = _DIRECTORY | os.O_NOFOLLOW

Names = tuple[bytes, ...]


@dataclass(frozen=True)
class Limits:
    """The maximum number of entries and of file bytes in an archive.

    If ``max_bytes`` is ``None``, only the free disk space limits the bytes.
    """

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
) -> CopyResult:
    """Unpack the archive ``source`` into the existing directory ``target``.

    Blocks.

    Files get the archive's permission bits, without set-id, and its times. They are renamed into place: an existing
    file or link is replaced, and links are not followed. Existing directories are kept and get the archive's mode and
    time. The target itself gets them only with ``new_target``. Owners are the caller's; with ``keep_owner``, which
    needs root, they are the archive's numeric ones. Symbolic links that lead out of the target are rejected; with
    ``unsafe_links`` they are created unchanged.

    1/20 of the target's disk, or 1 GiB if that is less, stays free.

    Raises `ArchiveRefused` for a forbidden entry, `TransferFailed` if the guest could not complete the archive, and
    `DiskFull`, `PermissionDenied` or another `FileError` for an error of the operating system.
    """
    if keep_owner and os.geteuid() != 0:
        raise PermissionDenied("only root can change the owner of files", hint="remove --keep-owner, or run as root")
    with local_errors(target):
        tree = _Tree(Path(target))
    with contextlib.closing(tree):
        return _Unpacking(tree, TarReader(source), keep_owner, unsafe_links, limits or Limits()).run(new_target)


class _Unpacking:
    """The state of unpacking one archive."""

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
        self._new_target = False
        self._entries = 0
        self._bytes = 0
        self._directories: dict[bytes, tuple[int, int, int, int]] = {}
        self._remembered = 0
        self._files: set[tuple[int, int]] = set()

    def run(self, new_target: bool) -> CopyResult:
        self._new_target = new_target
        for member in self._archive:
            self._count(member)
            names = _split(member)
            with local_errors(member.path):
                self._make(member, names)
        if not new_target:
            self._directories.pop(b"", None)
        self._finish_directories()
        return CopyResult(self._entries, self._bytes)

    def _count(self, member: Member) -> None:
        self._entries += 1
        if self._entries > self._limits.max_entries:
            raise ArchiveRefused(f"the archive has more than {self._limits.max_entries} entries")
        limit = self._limits.max_bytes
        if limit is not None and self._bytes + member.size > limit:
            raise ArchiveRefused(f"the files in the archive have more than {limit} bytes")
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
                raise refused(member.path, "a directory with this name exists") from None

    def _make_directory(self, member: Member, names: Names) -> None:
        fd = self._tree.directory(member, names)
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            os.fchmod(fd, mode | stat.S_IRWXU)
        path = b"/".join(names)
        if path or self._new_target:
            self._set_xattrs(fd, member)
        if path not in self._directories:
            self._remembered += len(path) + _REMEMBERED_EACH
            if self._remembered > _MAX_REMEMBERED:
                raise ArchiveRefused(f"the archive has too many directories: the limit is {len(self._directories)}")
        self._directories[path] = (member.mode, member.mtime_ns, member.uid, member.gid)

    def _write_file(self, member: Member, parent: int, name: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            left, checked = member.size, member.size
            for piece in self._archive.content():
                write_sparse(fd, piece)
                self._bytes += len(piece)
                left -= len(piece)
                if checked - left >= CHECK_ROOM_EVERY:
                    self._tree.check_room(member, left)
                    checked = left
            os.ftruncate(fd, member.size)
            self._set_xattrs(fd, member)
            self._set_attributes(fd, member.mode, member.mtime_ns, member.uid, member.gid)
            status = os.fstat(fd)
            self._files.add((status.st_dev, status.st_ino))
        finally:
            os.close(fd)

    def _make_symlink(self, member: Member, names: Names, parent: int, name: bytes) -> None:
        link = member.link
        if not link or b"\0" in link or len(link) > _MAX_LINK:
            raise refused(member.path, f"invalid symbolic link target '{escaped(link)}'")
        if not self._unsafe_links and not _stays_inside(link, len(names) - 1):
            raise refused(
                member.path,
                f"it is a symbolic link that leads out of the directory, to '{escaped(link)}'",
                hint="to copy such links unchanged, use --unsafe-links (in Python: unsafe_links=True)",
            )
        os.symlink(link, name, dir_fd=parent)
        os.utime(name, ns=(member.mtime_ns, member.mtime_ns), dir_fd=parent, follow_symlinks=False)
        if self._keep_owner:
            os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)

    def _make_hard_link(self, member: Member, parent: int, name: bytes) -> None:
        no_file = refused(
            member.path, f"it is a hard link to '{escaped(member.link)}', which is not an earlier file of the archive"
        )
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
        """Set the attributes of directories, children before parents.

        A parent's mode may deny access to its children.
        """
        for path in sorted(self._directories, reverse=True):
            with local_errors(path or b"."):
                self._set_attributes(self._tree.reopen(_split_path(path)), *self._directories[path])

    def _set_xattrs(self, fd: int, member: Member) -> None:
        """Set the user attributes of a member, with ``keep_owner`` only.

        A file system without them has none.
        """
        for name, value in member.xattrs if self._keep_owner else ():
            try:
                os.setxattr(fd, name, value)
            except OSError as error:
                if error.errno != errno.ENOTSUP:
                    raise

    def _set_attributes(self, fd: int, mode: int, mtime_ns: int, uid: int, gid: int) -> None:
        if self._keep_owner:
            os.chown(fd, uid, gid)
        os.fchmod(fd, mode)
        os.utime(fd, ns=(mtime_ns, mtime_ns))


class _Tree:
    """The directories below the target.

    The last used directory and its parents stay open, because consecutive entries usually share them.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._names: list[bytes] = []
        self._fds = [os.open(target, _DIRECTORY)]

    def close(self) -> None:
        self._leave(0)
        os.close(self._fds.pop())

    def directory(self, member: Member, names: Sequence[bytes]) -> int:
        """Open the directory ``names`` below the target; create missing ones.

        Valid until the next call.
        """
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
        """Open an existing directory. Valid until the next call."""
        self._leave(self._common(names))
        for name in names[len(self._names) :]:
            self._fds.append(os.open(name, _BELOW, dir_fd=self._fds[-1]))
            self._names.append(name)
        return self._fds[-1]

    @contextlib.contextmanager
    def existing(self, names: Sequence[bytes]) -> Iterator[int | None]:
        """Yield a descriptor of a directory, ``None`` if it does not exist."""
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
        """Raise `DiskFull` if ``size`` more bytes leave too little free space.

        ``member`` is for the message.
        """
        what = f"'{escaped(member.path)}' in the archive ({member.size} bytes)"
        check_room(self._fds[0], size, what, self._target)

    def _common(self, names: Sequence[bytes]) -> int:
        for depth, (mine, other) in enumerate(zip(self._names, names, strict=False)):
            if mine != other:
                return depth
        return min(len(self._names), len(names))

    def _leave(self, depth: int) -> None:
        """Close the directories that are deeper than ``depth``."""
        while len(self._names) > depth:
            self._names.pop()
            os.close(self._fds.pop())

    def _in_the_way(self, name: bytes) -> str:
        place = escaped(b"/".join([*self._names, name]))
        mode = os.stat(name, dir_fd=self._fds[-1], follow_symlinks=False).st_mode
        what = "a symbolic link: links are not followed" if stat.S_ISLNK(mode) else "not a directory"
        return f"'{place}' is {what}"


def _split(member: Member) -> Names:
    """Validate a member's name and return its components.

    The target itself has none.

    Raises `ArchiveRefused` if the name is not valid.
    """
    path = member.path
    if not path or b"\0" in path:
        raise refused(path, "invalid name")
    if path.startswith(b"/"):
        raise refused(path, "its path is absolute")
    if len(path) > _MAX_PATH:
        raise refused(path, f"its path has more than {_MAX_PATH} bytes")
    if path.endswith(b"/") and member.kind is not Kind.DIRECTORY:
        raise refused(path, "its path ends with '/', but it is not a directory")
    names = _split_path(path)
    if b".." in names:
        raise refused(path, "its path contains '..'")
    if len(names) > MAX_DEPTH:
        raise refused(path, f"it is too deep: the limit is {MAX_DEPTH} nested directories")
    if any(len(name) > _MAX_NAME for name in names):
        raise refused(path, f"a component of its path has more than {_MAX_NAME} bytes")
    if not names and member.kind is not Kind.DIRECTORY:
        raise refused(path, "this path is the target directory, but the entry is not a directory")
    return names


def _split_path(path: bytes) -> Names:
    return tuple(name for name in path.split(b"/") if name not in (b"", b"."))


def _stays_inside(link: bytes, depth: int) -> bool:
    """Return whether a symbolic link stays inside the target.

    ``depth`` is the number of directories between the target and the link.
    """
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
    """Yield an unused name in ``directory``.

    A file with this name is removed after the block.
    """
    name = f".squib-{secrets.token_hex(8)}".encode()
    try:
        yield name
    finally:
        with contextlib.suppress(
            FileNotFoundError
        ):  # usually renamed already; rename(2) between two links to one file does nothing
            os.unlink(name, dir_fd=directory)
