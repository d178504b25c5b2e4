package files

import (
	"bytes"
	"io"
	"strings"
	"syscall"
	"unsafe"
)

// maxLinks is how many symbolic links the kernel follows to a file.
const maxLinks = 40

// Attributes are the requested attributes of a new file or directory.
type Attributes struct {
	Mode  *uint32 // nil means the default, or the mode of the replaced file
	Owner *Owner  // nil means the user who acts, or the owner of the replaced file
	Mtime *int64  // in nanoseconds, for written files; nil means now
}

// Owner is a user and a group.
type Owner struct{ UID, GID uint32 }

const (
	defaultFileMode = 0o644
	defaultDirMode  = 0o755
)

// Write replaces the file at path by body, atomically: it writes a file with the name temporary in
// the same directory and renames it. When Write returns, the file is on the disk under its name. A
// failed Write leaves nothing and changes nothing. With parents, it creates missing directories.
func Write(path string, body io.Reader, want Attributes, parents bool, temporary string) (Info, error) {
	if parents {
		dir, _ := split(path)
		if err := mkdirAll(dir, want.Owner); err != nil {
			return Info{}, err
		}
	}
	dir, name, old, err := findTarget(path)
	if err != nil {
		return Info{}, fail(path, err)
	}
	defer syscall.Close(dir)
	mode, owner := uint32(defaultFileMode), want.Owner
	inherit := old != nil && owner == nil
	if old != nil {
		if err := regular(path, old); err != nil {
			return Info{}, err
		}
		if err := checkWritable(dir, name); err != nil {
			return Info{}, fail(path, err)
		}
		mode = old.Mode & 0o7777
	}
	if want.Mode != nil {
		mode = *want.Mode
	}
	fd, err := openat(dir, temporary, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return Info{}, fail(path, err)
	}
	defer syscall.Close(fd)
	var st syscall.Stat_t
	if _, err = copyToFile(fd, body, path); err == nil {
		if inherit && syscall.Fchown(fd, int(old.Uid), int(old.Gid)) != nil && want.Mode == nil {
			mode &= 0o777 // no set-ID bits: the file now belongs to the user who acts
		}
		err = finish(fd, mode, owner)
	}
	if err == nil && want.Mtime != nil {
		err = setTimes(fd, "", syscall.NsecToTimespec(*want.Mtime))
	}
	if err == nil {
		startWriteback(fd)
		err = syscall.Renameat(dir, temporary, dir, name)
	}
	if err != nil {
		unlinkat(dir, temporary, 0)
		return Info{}, fail(path, err)
	}
	// The rename changed the file's own record too, so this writes the new name to the disk as well.
	if err := syncFile(fd); err != nil {
		return Info{}, fail(path, err)
	}
	if err := syscall.Fstat(fd, &st); err != nil {
		return Info{}, fail(path, err)
	}
	return infoOf(baseOf(path), &st), nil
}

// checkWritable checks the permission to write a file. To replace it, the kernel requires only that
// of its directory.
func checkWritable(dir int, name string) error {
	const wOK, atEAccess = 2, 0x200
	p, err := syscall.BytePtrFromString(name)
	if err != nil {
		return err
	}
	err = errnoOf(syscall.Syscall6(sysFaccessat2, uintptr(dir), uintptr(unsafe.Pointer(p)), wOK, atEAccess|atSymlinkNoFollow, 0, 0))
	if err == syscall.ENOENT || err == syscall.ETXTBSY || err == syscall.ENOSYS { // removed; a running program; Linux before 5.8
		return nil
	}
	return err
}

// findTarget follows the symbolic links that path may end in, and opens the directory of the file
// that they lead to. old describes the existing file, if there is one.
func findTarget(path string) (dir int, name string, old *syscall.Stat_t, err error) {
	dir = atFdCwd
	for range maxLinks {
		var parent string
		if parent, name = split(path); name == "" || name == "." || name == ".." {
			err = syscall.EISDIR
			break
		}
		if parent != "" {
			var next int
			if next, err = openat(dir, parent, oPath|syscall.O_DIRECTORY, 0); err != nil {
				break
			}
			closeDir(dir)
			dir = next
		}
		var st syscall.Stat_t
		if err = fstatat(dir, name, &st, atSymlinkNoFollow); err == syscall.ENOENT {
			return dir, name, nil, nil
		}
		if err != nil {
			break
		}
		if !isType(&st, syscall.S_IFLNK) {
			return dir, name, &st, nil
		}
		if path, err = readlinkat(dir, name); err != nil {
			break
		}
		err = syscall.ELOOP
	}
	closeDir(dir)
	return 0, "", nil, err
}

func closeDir(fd int) {
	if fd != atFdCwd {
		syscall.Close(fd)
	}
}

// copyToFile writes all of body to a new file in large pieces, and leaves holes for zeros. Write
// errors name path; read errors of body are returned unchanged.
func copyToFile(fd int, body io.Reader, path string) (written int64, err error) {
	buffer := takeBuffer()
	defer putBuffer(buffer)
	piece, write := buffer, func(p []byte) error { return writeFull(fd, p) }
	skip := func(n int) error { _, err := syscall.Seek(fd, int64(n), io.SeekCurrent); return err }
	endsInHole := false
	for large := false; ; {
		if !large && written >= keepCached {
			large = true
			b := newBulk(fd, written, buffer)
			defer b.close()
			piece, write, skip = b.buffer, b.write, b.skip
		}
		n, readErr := fill(body, piece)
		if n > 0 {
			if endsInHole, err = writeSparse(piece[:n], write, skip); err != nil {
				return written, fail(path, err)
			}
		}
		written += int64(n)
		if readErr == io.EOF {
			if endsInHole {
				err = fail(path, syscall.Ftruncate(fd, written))
			}
			return written, err
		}
		if readErr != nil {
			return written, readErr
		}
	}
}

// holeSize is the size of the smallest hole. It is a multiple of every block size.
const holeSize = 16 << 10

var zeros [holeSize]byte

// writeSparse writes p, and skips runs of zeros, so that a sparse file stays sparse. It reports
// whether the last call was skip.
func writeSparse(p []byte, write func([]byte) error, skip func(int) error) (endsInHole bool, err error) {
	for start := 0; start < len(p); {
		end := start
		isHole := isZero(p[start:])
		for end < len(p) && isZero(p[end:]) == isHole {
			end = min(end+holeSize, len(p))
		}
		if isHole {
			err = skip(end - start)
		} else {
			err = write(p[start:end])
		}
		if err != nil {
			return false, err
		}
		start, endsInHole = end, isHole
	}
	return endsInHole, nil
}

// isZero reports whether p begins with a hole.
func isZero(p []byte) bool {
	return len(p) >= holeSize && p[0] == 0 && p[holeSize-1] == 0 && bytes.Equal(p[:holeSize], zeros[:])
}

// fill reads until b is full. Unlike io.ReadFull, it distinguishes the end of r (io.EOF) from a
// premature end.
func fill(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var got int
		got, err = r.Read(b[n:])
		n += got
	}
	return n, err
}

// finish sets the owner and then the mode of a new file. A change of owner clears set-ID bits, so
// the order matters.
func finish(fd int, mode uint32, owner *Owner) error {
	if owner != nil {
		if err := syscall.Fchown(fd, int(owner.UID), int(owner.GID)); err != nil {
			return err
		}
	}
	return syscall.Fchmod(fd, mode)
}

// MakeParents creates the missing directories above path.
func MakeParents(path string, owner *Owner) error {
	dir, _ := split(strings.TrimRight(path, "/"))
	return mkdirAll(dir, owner)
}

// mkdirAll creates the directory at path and its missing parents.
func mkdirAll(path string, owner *Owner) error {
	path = strings.TrimRight(path, "/")
	var st syscall.Stat_t
	if path == "" || statPath(path, &st, true) == nil && isType(&st, syscall.S_IFDIR) {
		return nil
	}
	parent, _ := split(path)
	if err := mkdirAll(parent, owner); err != nil {
		return err
	}
	err := mkdir(path, defaultDirMode, owner)
	if err == syscall.EEXIST && statPath(path, &st, true) == nil && isType(&st, syscall.S_IFDIR) {
		return nil // created concurrently
	}
	return fail(path, err)
}

func mkdir(path string, mode uint32, owner *Owner) error {
	dir, name, err := openParent(path)
	if err != nil {
		return err
	}
	defer syscall.Close(dir)
	if err := syscall.Mkdirat(dir, name, 0o700); err != nil {
		return err
	}
	fd, err := openat(dir, name, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	return finish(fd, mode, owner)
}
