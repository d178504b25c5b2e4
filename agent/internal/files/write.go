package files

import (
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"syscall"
)

// maxLinks is how many symbolic links lead to a file, as the kernel counts them.
const maxLinks = 40

// Attributes are what is asked for what is made.
type Attributes struct {
	Mode  *uint32 // nil: the default, or what a file that is replaced has
	Owner *Owner  // nil: root, or whom a file that is replaced belongs to
	Mtime *int64  // of a file that is written, in nanoseconds; nil: now
}

// Owner is a user and a group.
type Owner struct{ UID, GID uint32 }

const (
	defaultFileMode = 0o644
	defaultDirMode  = 0o755
)

// Write makes body the content of the file at path, in one step: it is written to a temporary file, which then takes the name. Nothing
// is left and nothing has changed if it fails. With parents, missing directories are made.
func Write(path string, body io.Reader, want Attributes, parents bool) (Info, error) {
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
	if old != nil {
		if err := regular(path, old); err != nil {
			return Info{}, err
		}
		mode = old.Mode & 0o7777
		if owner == nil {
			owner = &Owner{old.Uid, old.Gid}
		}
	}
	if want.Mode != nil {
		mode = *want.Mode
	}
	temporary := temporaryName()
	fd, err := openat(dir, temporary, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return Info{}, fail(path, err)
	}
	defer syscall.Close(fd)
	var st syscall.Stat_t
	if _, err = copyToFile(fd, body, path); err == nil {
		err = finish(fd, mode, owner)
	}
	if err == nil && want.Mtime != nil {
		err = setTimes(fd, "", syscall.NsecToTimespec(*want.Mtime))
	}
	if err == nil {
		settle(fd)
		err = syscall.Renameat(dir, temporary, dir, name)
	}
	if err != nil {
		unlinkat(dir, temporary, 0)
		return Info{}, fail(path, err)
	}
	if err := syscall.Fstat(fd, &st); err != nil {
		return Info{}, fail(path, err)
	}
	return infoOf(baseOf(path), &st), nil
}

// findTarget follows the links that path may end in. It opens the directory of the file that they lead to; old is what is there.
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

// temporaryName is a name for a file that is not complete. Two requests never have the same.
func temporaryName() string { return fmt.Sprintf(".squib-%016x", rand.Uint64()) }

// copyToFile writes all of body to a new file, in large pieces. Its own failures are told of path; those of body are passed on.
func copyToFile(fd int, body io.Reader, path string) (written int64, err error) {
	buffer := takeBuffer()
	defer putBuffer(buffer)
	piece, write := buffer, func(n int) error { return writeFull(fd, buffer[:n]) }
	for large := false; ; {
		if !large && written >= keepCached {
			large = true
			b := newBulk(fd, written, buffer)
			defer b.close()
			piece, write = b.buffer, b.write
		}
		n, readErr := fill(body, piece)
		if err := write(n); err != nil {
			return written, fail(path, err)
		}
		written += int64(n)
		if readErr == io.EOF {
			return written, nil
		}
		if readErr != nil {
			return written, readErr
		}
	}
}

// fill reads until b is full. Unlike io.ReadFull it tells the end of r, which is io.EOF, from one that came too early.
func fill(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var got int
		got, err = r.Read(b[n:])
		n += got
	}
	return n, err
}

// finish gives a file that is still nobody's its owner and mode. The order matters: a change of the owner takes set-id bits away.
func finish(fd int, mode uint32, owner *Owner) error {
	if owner != nil {
		if err := syscall.Fchown(fd, int(owner.UID), int(owner.GID)); err != nil {
			return err
		}
	}
	return syscall.Fchmod(fd, mode)
}

// mkdirAll makes the directories that are missing on the way to path, and path.
func mkdirAll(path string, owner *Owner) error {
	path = strings.TrimRight(path, "/")
	var st syscall.Stat_t
	if path == "" || fstatat(atFdCwd, path, &st, 0) == nil && isType(&st, syscall.S_IFDIR) {
		return nil
	}
	parent, _ := split(path)
	if err := mkdirAll(parent, owner); err != nil {
		return err
	}
	err := mkdir(path, defaultDirMode, owner)
	if err == syscall.EEXIST && fstatat(atFdCwd, path, &st, 0) == nil && isType(&st, syscall.S_IFDIR) {
		return nil // somebody else has made it since
	}
	return fail(path, err)
}

func mkdir(path string, mode uint32, owner *Owner) error {
	if err := syscall.Mkdirat(atFdCwd, path, mode&0o777); err != nil {
		return err
	}
	if owner != nil {
		if err := syscall.Fchownat(atFdCwd, path, int(owner.UID), int(owner.GID), atSymlinkNoFollow); err != nil {
			return err
		}
	}
	return syscall.Fchmodat(atFdCwd, path, mode, 0)
}
