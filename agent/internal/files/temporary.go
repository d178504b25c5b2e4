package files

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"
)

// TemporaryName returns a unique name for an incomplete file.
func TemporaryName() string { return fmt.Sprintf(".squib-%016x", rand.Uint64()) }

// Records records on the disk which temporary names are in use, so that the next boot can remove
// the files that a killed VM left. A record is an empty file with that name in a directory that the
// guest does not see. Directory and guest files must be on the same journaled filesystem: it writes
// changes in order, so the record is on the disk before the temporary file is.
//
// A nil *Records records nothing.
type Records struct{ dir int }

// OpenRecords opens the records in the directory at path, and creates it if it is missing.
func OpenRecords(path string) (*Records, error) {
	if err := os.Mkdir(path, 0o700); err != nil && !os.IsExist(err) {
		return nil, err
	}
	dir, err := openat(atFdCwd, path, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &Records{dir}, nil
}

// Add returns a new temporary name, which is recorded until Remove.
func (r *Records) Add() (name string, err error) {
	name = TemporaryName()
	if r != nil {
		err = syscall.Mknodat(r.dir, name, syscall.S_IFREG|0o600, 0)
	}
	return name, fail("the record of an upload", err)
}

// Remove forgets a temporary name. No file may have it any more.
func (r *Records) Remove(name string) {
	if r != nil {
		unlinkat(r.dir, name, 0)
	}
}

// Sweep removes everything below the directory tree that has a recorded name, and the records. It
// walks the tree only if there are records. It follows no links.
func (r *Records) Sweep(tree string) error {
	names := map[string]bool{}
	err := eachEntry(r.dir, func(name string) error {
		names[name] = true
		return nil
	})
	if err != nil || len(names) == 0 {
		return err
	}
	fd, err := openat(atFdCwd, tree, syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: tree, Err: err}
	}
	defer syscall.Close(fd)
	if err := sweep(fd, names, tree, maxDepth); err != nil {
		return err
	}
	for name := range names {
		r.Remove(name)
	}
	return nil
}

func sweep(dir int, names map[string]bool, shown string, depth int) error {
	var found []string
	var problems []error
	err := eachTyped(dir, func(name string, kind byte) error {
		if names[name] {
			found = append(found, name)
			return nil
		}
		if depth == 0 || kind != syscall.DT_DIR && kind != syscall.DT_UNKNOWN {
			return nil
		}
		fd, err := openat(dir, name, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
		if err != nil {
			return nil // not a directory
		}
		defer syscall.Close(fd)
		if err := sweep(fd, names, join(shown, name), depth-1); err != nil {
			problems = append(problems, err)
		}
		return nil
	})
	for _, name := range found {
		if unlinkat(dir, name, 0) == syscall.EISDIR {
			problems = append(problems, removeDir(dir, name, true, join(shown, name), maxDepth))
		}
	}
	return errors.Join(append(problems, err)...)
}
