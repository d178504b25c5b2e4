package files

import (
	"strconv"
	"strings"
	"syscall"

	"squib/agent/internal/process"
)

// maxDepth bounds how deep directories are walked: each one on the way is open.
const maxDepth = 1000

// Mkdir makes a directory. With parents it makes missing ones, and one that exists is no error (and is left as it is).
func Mkdir(path string, want Attributes, parents bool) error {
	if parents {
		var st syscall.Stat_t
		if fstatat(atFdCwd, path, &st, 0) == nil && isType(&st, syscall.S_IFDIR) {
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

// Rename gives a file another name. What has the name already is replaced, if it is a file, or an empty directory for a directory.
func Rename(from, to string) error {
	var st syscall.Stat_t
	if err := fstatat(atFdCwd, from, &st, atSymlinkNoFollow); err != nil {
		return fail(from, err)
	}
	switch err := syscall.Renameat(atFdCwd, from, atFdCwd, to); err {
	case syscall.EEXIST: // what some filesystems say of a directory with entries
		return refuse(DirectoryNotEmpty, to, syscall.ENOTEMPTY.Error())
	case syscall.EXDEV:
		return refuse(process.Internal, from, "cannot be moved to "+quote(to)+
			": it is on another filesystem (a directory that came with the image counts as one)")
	default:
		return fail(to, err)
	}
}

// Remove removes a file or an empty directory, and with recursive a directory with all below it but what is mounted there.
func Remove(path string, recursive bool) error {
	// The kernel would not remove this directory, but what is in it would be gone by then.
	if baseOf(path) == ".." {
		return refuse(process.BadRequest, path, "a path that ends in .. is not removed")
	}
	err := syscall.Unlinkat(atFdCwd, path)
	if err != syscall.EISDIR && err != syscall.EPERM {
		return fail(path, err)
	}
	var st syscall.Stat_t
	if fstatat(atFdCwd, path, &st, atSymlinkNoFollow) != nil || !isType(&st, syscall.S_IFDIR) {
		return fail(path, err)
	}
	return fail(path, removeDir(atFdCwd, path, recursive, path, maxDepth))
}

// removeDir removes the directory name in dir; shown is its path. It is first taken for empty: the kernel says by that whether something
// is mounted there, before anything below it is touched.
func removeDir(dir int, name string, recursive bool, shown string, depth int) error {
	for range 100 { // as often as somebody puts something new into it
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
	return refuse(process.Internal, path, "directories are nested deeper than "+strconv.Itoa(maxDepth))
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
