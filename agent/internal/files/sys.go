package files

import (
	"cmp"
	"strings"
	"syscall"
	"unsafe"
)

// System calls that package syscall lacks in their *at form, and calls that must be repeated after
// EINTR.

const (
	atFdCwd           = -100
	atRemoveDir       = 0x200
	atSymlinkNoFollow = 0x100
	oPath             = 0x200000
	fadviseDontNeed   = 4

	sysOpenat2          = 437 // this and the next on every architecture
	sysFaccessat2       = 439
	resolveNoMagicLinks = 2
)

// openat opens a file. It does not follow the magic links of procfs (fd, cwd, root, exe): those of
// the agent would lead a user past the directories that the user cannot enter.
func openat(dir int, name string, flags int, mode uint32) (int, error) {
	p, err := syscall.BytePtrFromString(name)
	if err != nil {
		return -1, err
	}
	how := struct{ flags, mode, resolve uint64 }{uint64(flags | syscall.O_CLOEXEC), uint64(mode), resolveNoMagicLinks}
	for {
		fd, _, errno := syscall.Syscall6(sysOpenat2, uintptr(dir), uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&how)), unsafe.Sizeof(how), 0, 0)
		if errno == syscall.ENOSYS { // Linux before 5.6
			plain, err := syscall.Openat(dir, name, flags|syscall.O_CLOEXEC, mode)
			fd = uintptr(plain)
			errno, _ = err.(syscall.Errno)
		}
		if errno == 0 {
			return int(fd), nil
		}
		if errno != syscall.EINTR {
			return -1, errno
		}
	}
}

// statPath describes the file at path. With follow, it follows a final symbolic link.
func statPath(path string, st *syscall.Stat_t, follow bool) error {
	flags := oPath
	if !follow {
		flags |= syscall.O_NOFOLLOW
	}
	fd, err := openat(atFdCwd, path, flags, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	return syscall.Fstat(fd, st)
}

// openParent opens the directory of path for operations on the entry name. The caller closes it.
func openParent(path string) (dir int, name string, err error) {
	parent, name := split(strings.TrimRight(path, "/"))
	if name == "" { // the root directory
		name = "."
	}
	dir, err = openat(atFdCwd, parent+".", oPath|syscall.O_DIRECTORY, 0)
	return dir, name + path[len(strings.TrimRight(path, "/")):], err
}

// chmodat sets the mode of name in dir. Unlike fchmodat(2), it does not follow a symbolic link.
func chmodat(dir int, name string, mode uint32) error {
	fd, err := openat(dir, name, oPath|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil || isType(&st, syscall.S_IFLNK) {
		return cmp.Or(err, error(syscall.ELOOP))
	}
	return syscall.Fchmodat(atFdCwd, descriptorPath(fd), mode, 0)
}

func read(fd int, b []byte) (int, error) {
	for {
		n, err := syscall.Read(fd, b)
		if err != syscall.EINTR {
			return max(n, 0), err
		}
	}
}

// readFull reads until b is full or the file ends.
func readFull(fd int, b []byte) (n int, err error) {
	for n < len(b) {
		got, err := read(fd, b[n:])
		if got == 0 || err != nil {
			return n, err
		}
		n += got
	}
	return n, nil
}

func writeFull(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := syscall.Write(fd, b)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func fstatat(dir int, name string, st *syscall.Stat_t, flags int) error {
	p, err := syscall.BytePtrFromString(name)
	if err != nil {
		return err
	}
	return errnoOf(syscall.Syscall6(sysFstatat, uintptr(dir), uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(st)), uintptr(flags), 0, 0))
}

func unlinkat(dir int, name string, flags int) error {
	p, err := syscall.BytePtrFromString(name)
	if err != nil {
		return err
	}
	return errnoOf(syscall.Syscall(syscall.SYS_UNLINKAT, uintptr(dir), uintptr(unsafe.Pointer(p)), uintptr(flags)))
}

func linkat(oldDir int, old string, newDir int, new string) error {
	p, err := syscall.BytePtrFromString(old)
	if err != nil {
		return err
	}
	q, err := syscall.BytePtrFromString(new)
	if err != nil {
		return err
	}
	return errnoOf(syscall.Syscall6(syscall.SYS_LINKAT, uintptr(oldDir), uintptr(unsafe.Pointer(p)), uintptr(newDir), uintptr(unsafe.Pointer(q)), 0, 0))
}

func symlinkat(target string, dir int, name string) error {
	p, err := syscall.BytePtrFromString(target)
	if err != nil {
		return err
	}
	q, err := syscall.BytePtrFromString(name)
	if err != nil {
		return err
	}
	return errnoOf(syscall.Syscall(syscall.SYS_SYMLINKAT, uintptr(unsafe.Pointer(p)), uintptr(dir), uintptr(unsafe.Pointer(q))))
}

func readlinkat(dir int, name string) (string, error) {
	p, err := syscall.BytePtrFromString(name)
	if err != nil {
		return "", err
	}
	var b [4096]byte // PATH_MAX: no link target is longer
	n, _, errno := syscall.Syscall6(syscall.SYS_READLINKAT, uintptr(dir), uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&b)), uintptr(len(b)), 0, 0)
	if errno != 0 {
		return "", errno
	}
	return string(b[:n]), nil
}

// setTimes sets the access and modification time of name in dir without following a link. An empty
// name means dir itself.
func setTimes(dir int, name string, mtime syscall.Timespec) error {
	var p *byte
	flags := 0
	if name != "" {
		var err error
		if p, err = syscall.BytePtrFromString(name); err != nil {
			return err
		}
		flags = atSymlinkNoFollow
	}
	times := [2]syscall.Timespec{mtime, mtime}
	return errnoOf(syscall.Syscall6(syscall.SYS_UTIMENSAT, uintptr(dir), uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&times)), uintptr(flags), 0, 0))
}

// dontNeed starts write-back of a range of a file, and drops its clean pages from the page cache.
func dontNeed(fd int, offset, length int64) {
	syscall.Syscall6(syscall.SYS_FADVISE64, uintptr(fd), uintptr(offset), uintptr(length), fadviseDontNeed, 0, 0)
}

// startWriteback makes the kernel start writing a new file to the disk, without waiting. Without
// it, ext4 may store the file's name long before it allocates the content, and a guest lost in
// between has a truncated file. (When a file is replaced, ext4 does this itself.)
func startWriteback(fd int) { dontNeed(fd, 0, 0) }

// syncAll writes the whole filesystem of an open file to the disk, and waits. For many files this is
// faster than syncFile for each.
func syncAll(fd int) error { return errnoOf(syscall.Syscall(sysSyncfs, uintptr(fd), 0, 0)) }

// syncFile writes a file or directory to the disk, and waits. On ext4 this includes the name that it
// was renamed to.
func syncFile(fd int) error {
	err := syscall.Fsync(fd)
	if err == syscall.EINVAL || err == syscall.EROFS { // the filesystem has nothing to write
		return nil
	}
	return err
}

func errnoOf(_, _ uintptr, errno syscall.Errno) error {
	if errno != 0 {
		return errno
	}
	return nil
}
