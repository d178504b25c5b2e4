package files

import (
	"bytes"
	"strings"
	"syscall"
	"unsafe"
)

// Info describes a file.
type Info struct {
	Name       string
	Type       string
	Size       int64
	Mode       uint32 // permission, set-id and sticky bits
	UID, GID   uint32
	MtimeNS    int64
	LinkTarget *string // nil unless the file is a symbolic link
}

var types = map[uint32]string{
	syscall.S_IFREG:  "file",
	syscall.S_IFDIR:  "directory",
	syscall.S_IFLNK:  "symlink",
	syscall.S_IFIFO:  "fifo",
	syscall.S_IFSOCK: "socket",
	syscall.S_IFCHR:  "char_device",
	syscall.S_IFBLK:  "block_device",
}

func infoOf(name string, st *syscall.Stat_t) Info {
	return Info{
		Name: name, Type: types[st.Mode&syscall.S_IFMT], Size: st.Size, Mode: st.Mode & 0o7777,
		UID: st.Uid, GID: st.Gid, MtimeNS: st.Mtim.Nano(),
	}
}

func isType(st *syscall.Stat_t, kind uint32) bool { return st.Mode&syscall.S_IFMT == kind }

// Stat describes the file at path. With follow, it follows a final symbolic link.
func Stat(path string, follow bool) (Info, error) {
	dir, name, err := openParent(path)
	if err != nil {
		return Info{}, fail(path, err)
	}
	defer syscall.Close(dir)
	if follow || strings.HasSuffix(name, "/") {
		var st syscall.Stat_t
		err := statPath(path, &st, true)
		return infoOf(baseOf(path), &st), fail(path, err)
	}
	info, err := statAt(dir, name)
	info.Name = baseOf(path)
	return info, fail(path, err)
}

// statAt describes the entry name of a directory. It follows no symbolic link.
func statAt(dir int, name string) (Info, error) {
	var st syscall.Stat_t
	if err := fstatat(dir, name, &st, atSymlinkNoFollow); err != nil {
		return Info{}, err
	}
	info := infoOf(name, &st)
	if isType(&st, syscall.S_IFLNK) {
		target, err := readlinkat(dir, name)
		if err != nil {
			return Info{}, err
		}
		info.LinkTarget = &target
	}
	return info, nil
}

// Dir is an open directory.
type Dir struct {
	path string
	fd   int
}

// OpenDir opens the directory at path.
func OpenDir(path string) (*Dir, error) {
	fd, err := openat(atFdCwd, path, syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return nil, fail(path, err)
	}
	return &Dir{path, fd}, nil
}

// Each calls f with the description of each entry, in directory order, until f fails. It does not
// hold them all in memory.
func (d *Dir) Each(f func(Info) error) error {
	return eachEntry(d.fd, func(name string) error {
		info, err := statAt(d.fd, name)
		if err == syscall.ENOENT { // removed since
			return nil
		}
		if err != nil {
			return fail(join(d.path, name), err)
		}
		return f(info)
	})
}

// Close closes the directory.
func (d *Dir) Close() { syscall.Close(d.fd) }

// eachEntry calls f with the name of each entry of a directory, until f fails.
func eachEntry(dir int, f func(name string) error) error {
	return eachTyped(dir, func(name string, _ byte) error { return f(name) })
}

// eachTyped calls f with the name and the type (DT_DIR and so on) of each entry of a directory,
// until f fails. It reads one buffer of names at a time.
func eachTyped(dir int, f func(name string, kind byte) error) error {
	b := make([]byte, 8<<10)
	for {
		n, err := syscall.ReadDirent(dir, b)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return err
		}
		for rest := b[:n]; len(rest) > 0; {
			entry := (*syscall.Dirent)(unsafe.Pointer(&rest[0]))
			name := rest[unsafe.Offsetof(entry.Name):entry.Reclen]
			name = name[:bytes.IndexByte(name, 0)]
			if entry.Ino != 0 && string(name) != "." && string(name) != ".." {
				if err := f(string(name), entry.Type); err != nil {
					return err
				}
			}
			rest = rest[entry.Reclen:]
		}
	}
}

// onKernelFilesystem reports whether a file or directory belongs to procfs or sysfs. Tree walks do not enter
// these: their directories are endless, and they hold files as large as all memory and files that
// cannot be read.
func onKernelFilesystem(fd int) bool {
	const procMagic, sysfsMagic = 0x9fa0, 0x62656572
	var st syscall.Statfs_t
	return syscall.Fstatfs(fd, &st) == nil && (st.Type == procMagic || st.Type == sysfsMagic)
}

// split splits a path after its last slash. Either part may be empty.
func split(path string) (dir, name string) {
	i := strings.LastIndexByte(path, '/') + 1
	return path[:i], path[i:]
}

// baseOf returns the last component of a path, or "/".
func baseOf(path string) string {
	_, name := split(strings.TrimRight(path, "/"))
	if name == "" {
		return "/"
	}
	return name
}

func join(dir, name string) string {
	if strings.HasSuffix(dir, "/") {
		return dir + name
	}
	return dir + "/" + name
}
