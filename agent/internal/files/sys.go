package files

import (
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// System calls that the syscall package does not offer relative to a directory, and those that have to be tried again after a signal.

const (
	atFdCwd           = -100
	atRemoveDir       = 0x200
	atSymlinkNoFollow = 0x100
	oPath             = 0x200000
	fadviseDontNeed   = 4
)

// bufferSize is what files are read and written by, and what goes to the host in one piece. Larger pieces gain nothing.
// Transfers hold theirs while their hosts take their time, though: beyond the first few they get small ones, or two hundred would take a
// small guest's memory.
const (
	bufferSize  = 256 << 10
	smallBuffer = 32 << 10
	mostBuffers = 8
)

var (
	buffers      = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}
	smallBuffers = sync.Pool{New: func() any { b := make([]byte, smallBuffer); return &b }}
	buffersUsed  atomic.Int32
)

// takeBuffer returns one of bufferSize or smallBuffer, and what gives it back.
func takeBuffer() ([]byte, func()) {
	pool, done := &buffers, func() { buffersUsed.Add(-1) }
	if buffersUsed.Add(1) > mostBuffers {
		done()
		pool, done = &smallBuffers, func() {}
	}
	b := pool.Get().(*[]byte)
	return *b, func() { pool.Put(b); done() }
}

func openat(dir int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := syscall.Openat(dir, name, flags|syscall.O_CLOEXEC, mode)
		if err != syscall.EINTR {
			return fd, err
		}
	}
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
	var b [4096]byte // PATH_MAX: no link is longer
	n, _, errno := syscall.Syscall6(syscall.SYS_READLINKAT, uintptr(dir), uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&b)), uintptr(len(b)), 0, 0)
	if errno != 0 {
		return "", errno
	}
	return string(b[:n]), nil
}

// setTimes sets access and modification time of name in dir, not of what a link leads to; with an empty name, of dir itself.
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

// dontNeed starts the write-back of a range of a file and drops what of it is on the disk already from the page cache.
func dontNeed(fd int, offset, length int64) {
	syscall.Syscall6(syscall.SYS_FADVISE64, uintptr(fd), uintptr(offset), uintptr(length), fadviseDontNeed, 0, 0)
}

// settle has the kernel start to write all of a new file to the disk, and does not wait. Where its name is on the disk, its content then is too:
// without that ext4 may write the name long before it has even found room for the content, and a guest that is lost in between has a file with
// a part of it. (ext4 does the same by itself where a file is replaced.)
func settle(fd int) { dontNeed(fd, 0, 0) }

// syncAll writes all of the filesystem that a directory is on to the disk, and waits. For many files that is faster than settle for each.
func syncAll(dir int, name string) error {
	fd, err := openat(dir, name, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	return errnoOf(syscall.Syscall(sysSyncfs, uintptr(fd), 0, 0))
}

func errnoOf(_, _ uintptr, errno syscall.Errno) error {
	if errno != 0 {
		return errno
	}
	return nil
}
