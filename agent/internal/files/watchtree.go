package files

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"syscall"
	"unsafe"

	"squib/agent/internal/process"
)

const (
	// maxWatches bounds the directories of one watcher. Each costs the kernel about a kilobyte.
	maxWatches = 8192
	// maxListed bounds the remembered entries of new directories. Beyond it an entry may be
	// reported twice.
	maxListed = 1 << 16

	watchMask = syscall.IN_CREATE | syscall.IN_MODIFY | syscall.IN_DELETE | syscall.IN_MOVED_FROM | syscall.IN_MOVED_TO | syscall.IN_ATTRIB |
		syscall.IN_DELETE_SELF | syscall.IN_MOVE_SELF | syscall.IN_ONLYDIR | syscall.IN_EXCL_UNLINK
)

// watchTree is the set of watched directories: a single one, or a whole tree.
type watchTree struct {
	inotify            int
	root               string
	rootWatch          int32
	recursive          bool
	onKernelFilesystem bool // the root belongs to procfs or sysfs
	paths              map[int32]string
	// listed holds entries that were found by listing a new directory. The queue may also hold
	// their creation.
	listed map[string]bool
	found  func(path string) error
}

// limitError reports a directory that is not watched.
type limitError struct {
	path    string
	problem string
}

func (e *limitError) Error() string { return e.path + ": " + e.problem }

func cannotWatch(path, problem string) error {
	return newError(process.Internal, path, "cannot be watched: "+problem)
}

func (t *watchTree) start() error {
	watch, err := addWatch(t.inotify, t.root, 0)
	if err == syscall.ENOSPC {
		return cannotWatch(t.root, "the guest's kernel has reached its limit of watches")
	}
	if err != nil {
		return fail(t.root, err)
	}
	t.rootWatch = int32(watch)
	t.paths[t.rootWatch] = t.root
	err = t.addBelow(t.root, 0, false)
	if limit, ok := err.(*limitError); ok {
		return cannotWatch(limit.path, limit.problem)
	}
	return err
}

// addWatch watches the directory at path. inotify_add_watch(2) cannot open it by itself without
// following the magic links of procfs.
func addWatch(inotify int, path string, flags int) (watch int, err error) {
	fd, err := openat(atFdCwd, path, oPath|syscall.O_DIRECTORY|flags, 0)
	if err != nil {
		return 0, err
	}
	defer syscall.Close(fd)
	return syscall.InotifyAddWatch(inotify, descriptorPath(fd), watchMask)
}

// add watches the directory at path and everything below it. If fresh is set, it reports the
// entries to found. It ignores entries that are gone.
func (t *watchTree) add(path string, depth int, fresh bool) error {
	if !t.recursive {
		return nil
	}
	if len(t.paths) >= maxWatches {
		return &limitError{path, fmt.Sprintf("more than %d directories", maxWatches)}
	}
	watch, err := addWatch(t.inotify, path, syscall.O_NOFOLLOW)
	if err == syscall.ENOSPC {
		return &limitError{path, "the guest's kernel has reached its limit of watches"}
	}
	if err != nil || int32(watch) == t.rootWatch { // the root may be mounted below itself
		return nil
	}
	t.paths[int32(watch)] = path
	return t.addBelow(path, depth, fresh)
}

func (t *watchTree) addBelow(path string, depth int, fresh bool) error {
	if !t.recursive {
		return nil
	}
	if depth > maxDepth {
		return &limitError{path, fmt.Sprintf("directories are nested deeper than %d", maxDepth)}
	}
	flags := syscall.O_RDONLY | syscall.O_DIRECTORY
	if depth > 0 {
		flags |= syscall.O_NOFOLLOW
	}
	fd, err := openat(atFdCwd, path, flags, 0)
	if err != nil {
		return nil
	}
	defer syscall.Close(fd)
	if depth == 0 {
		t.onKernelFilesystem = onKernelFilesystem(fd)
	} else if !t.onKernelFilesystem && onKernelFilesystem(fd) {
		return nil
	}
	err = eachEntry(fd, func(name string) error {
		entry := join(path, name)
		if fresh && !t.listed[entry] {
			if len(t.listed) < maxListed {
				t.listed[entry] = true
			}
			if err := t.found(entry); err != nil {
				return err
			}
		}
		var st syscall.Stat_t
		if fstatat(fd, name, &st, atSymlinkNoFollow) != nil || !isType(&st, syscall.S_IFDIR) {
			return nil
		}
		return t.add(entry, depth+1, fresh)
	})
	if _, gone := err.(syscall.Errno); gone {
		return nil
	}
	return err
}

// renamed updates the paths below a renamed directory. It reports whether the directory was watched.
func (t *watchTree) renamed(from, to string) (watched bool) {
	for watch, path := range t.paths {
		if path == from || strings.HasPrefix(path, from+"/") {
			t.paths[watch] = to + path[len(from):]
			watched = true
		}
	}
	return watched || !t.recursive
}

// unwatch stops watching a directory that has left the tree.
func (t *watchTree) unwatch(dir string) {
	for watch, path := range t.paths {
		if path == dir || strings.HasPrefix(path, dir+"/") {
			syscall.InotifyRmWatch(t.inotify, uint32(watch))
			delete(t.paths, watch)
		}
	}
}

// forgetListed clears listed when no changes are left in the kernel's queue: then none can repeat
// an entry. It must be called after all changes that were read have been handled.
func (t *watchTree) forgetListed() {
	if len(t.listed) == 0 {
		return
	}
	var unread int32
	syscall.Syscall(syscall.SYS_IOCTL, uintptr(t.inotify), syscall.TIOCINQ, uintptr(unsafe.Pointer(&unread)))
	if unread == 0 {
		clear(t.listed)
	}
}

// change is an inotify event.
type change struct {
	watch  int32
	mask   uint32
	cookie uint32
	name   string
}

// changesIn parses a buffer of inotify events.
func changesIn(b []byte) (changes []change) {
	for len(b) >= syscall.SizeofInotifyEvent {
		c := change{
			watch: int32(binary.NativeEndian.Uint32(b)), mask: binary.NativeEndian.Uint32(b[4:]), cookie: binary.NativeEndian.Uint32(b[8:]),
		}
		end := syscall.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
		name, _, _ := bytes.Cut(b[syscall.SizeofInotifyEvent:end], []byte{0})
		c.name = string(name)
		changes = append(changes, c)
		b = b[end:]
	}
	return changes
}
