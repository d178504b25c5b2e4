package files

import (
	"strconv"
	"strings"
	"syscall"

	"squib/agent/internal/process"
)

// maxDepth bounds the depth of directory walks, which hold each directory on the way open.
const maxDepth = 1000

// Mkdir creates a directory. With parents it also creates missing parents, and leaves an existing
// directory as it is.
func Mkdir(path string, want Attributes, parents bool) error {
	if parents {
		var st syscall.Stat_t
		if statPath(path, &st, true) == nil && isType(&st, syscall.S_IFDIR) {
			return nil
		}
		dir, _ := split(strings.TrimRight(path, "/"))
		if err := mkdirAll(dir, want.Owner); err != nil {
			return err
		}
	}
	mode := uint32(defaultDirMode)
	if want.Mode != nil {
		mode = *want.Mode
	}
	return fail(path, mkdir(path, mode, want.Owner))
}

// Rename renames a file. It replaces an existing file, or an empty directory by a directory.
func Rename(from, to string) error {
	fromDir, fromName, err := openParent(from)
	if err != nil {
		return fail(from, err)
	}
	defer syscall.Close(fromDir)
	var st syscall.Stat_t
	if err := fstatat(fromDir, fromName, &st, atSymlinkNoFollow); err != nil {
		return fail(from, err)
	}
	toDir, toName, err := openParent(to)
	if err != nil {
		return fail(to, err)
	}
	defer syscall.Close(toDir)
	switch err := syscall.Renameat(fromDir, fromName, toDir, toName); err {
	case syscall.EEXIST: // some filesystems report a non-empty directory so
		return newError(DirectoryNotEmpty, to, syscall.ENOTEMPTY.Error())
	case syscall.EXDEV:
		return newError(process.Internal, from, "cannot be moved to "+quote(to)+
			": it is on another filesystem (a directory that came with the image counts as one)")
	default:
		return fail(to, err)
	}
}

// Remove removes a file or an empty directory. With recursive it removes a directory and everything
// below it, except mount points.
func Remove(path string, recursive bool) error {
	// The kernel would refuse to remove this directory, but its contents would already be gone.
	if baseOf(path) == ".." {
		return newError(process.BadRequest, path, "cannot remove a path that ends in ..")
	}
	dir, name, err := openParent(path)
	if err != nil {
		return fail(path, err)
	}
	defer syscall.Close(dir)
	err = unlinkat(dir, name, 0)
	if err != syscall.EISDIR && err != syscall.EPERM {
		return fail(path, err)
	}
	var st syscall.Stat_t
	if fstatat(dir, name, &st, atSymlinkNoFollow) != nil || !isType(&st, syscall.S_IFDIR) {
		return fail(path, err)
	}
	return fail(path, removeDir(dir, name, recursive, path, maxDepth))
}

// removeDir removes the directory name in dir; shown is its path for error messages. It tries to
// remove the directory as if it were empty first: the kernel then reports a mount point before
// anything below it is removed.
func removeDir(dir int, name string, recursive bool, shown string, depth int) error {
	for range 100 { // retries while others create files in it
		err := unlinkat(dir, name, atRemoveDir)
		if err != syscall.ENOTEMPTY && err != syscall.EEXIST {
			return fail(shown, err)
		}
		if !recursive {
			return fail(shown, syscall.ENOTEMPTY)
		}
		if depth == 0 {
			return tooDeep(shown)
		}
		if err := emptyDir(dir, name, shown, depth); err != nil {
			return err
		}
	}
	return fail(shown, syscall.ENOTEMPTY)
}

func tooDeep(path string) error {
	return newError(process.Internal, path, "directories are nested deeper than "+strconv.Itoa(maxDepth))
}

func emptyDir(dir int, name, shown string, depth int) error {
	fd, err := openat(dir, name, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return fail(shown, err)
	}
	defer syscall.Close(fd)
	return eachEntry(fd, func(entry string) error {
		path := join(shown, entry)
		switch err := unlinkat(fd, entry, 0); err {
		case nil, syscall.ENOENT:
			return nil
		case syscall.EISDIR:
			return removeDir(fd, entry, true, path, depth-1)
		default:
			return fail(path, err)
		}
	})
}
