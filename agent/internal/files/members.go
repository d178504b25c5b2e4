package files

import (
	"archive/tar"
	"io"
	"math"
	"strconv"
	"syscall"

	"squib/agent/internal/process"
)

// Each of these functions creates an archive member under the temporary name in dir, with all its
// attributes.

func (u *unpacker) makeFile(dir int, header *tar.Header, owner *Owner, content io.Reader) (size int64, err error) {
	fd, err := openat(dir, u.temporary, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return 0, err
	}
	defer syscall.Close(fd)
	if header.Size > 0 {
		if size, err = copyToFile(fd, content, u.shown(header.Name)); err != nil {
			return size, err
		}
	}
	if err := setXattrs(fd, header.PAXRecords); err != nil {
		return size, err
	}
	if err := finish(fd, modeOf(header), owner); err != nil {
		return size, err
	}
	if !u.isNew {
		startWriteback(fd)
	}
	return size, setTimes(fd, "", mtimeOf(header))
}

func (u *unpacker) makeSymlink(dir int, header *tar.Header, owner *Owner) error {
	if header.Linkname == "" {
		return newError(process.BadRequest, header.Name, "symbolic link with an empty target")
	}
	if len(u.links) >= maxRemembered {
		return newError(process.BadRequest, header.Name, "too many symbolic links; an archive may hold "+strconv.Itoa(maxRemembered))
	}
	if err := symlinkat(header.Linkname, dir, u.temporary); err != nil {
		return err
	}
	if owner != nil {
		if err := syscall.Fchownat(dir, u.temporary, int(owner.UID), int(owner.GID), atSymlinkNoFollow); err != nil {
			return err
		}
	}
	var st syscall.Stat_t
	if err := fstatat(dir, u.temporary, &st, atSymlinkNoFollow); err != nil {
		return err
	}
	u.links[inodeOf(&st)] = true
	return setTimes(dir, u.temporary, mtimeOf(header))
}

// makeLink creates a hard link to a file below the archive's root.
func (u *unpacker) makeLink(dir int, header *tar.Header) error {
	parts, err := components(header.Linkname)
	if err != nil {
		return err
	}
	bad := func(err error) error {
		return newError(process.BadRequest, header.Name, "cannot link to "+quote(header.Linkname)+": "+err.Error())
	}
	if len(parts) == 0 {
		return bad(syscall.EISDIR)
	}
	from := u.stack[0].fd
	for i, part := range parts[:len(parts)-1] {
		next, err := u.open(from, part)
		if i > 0 {
			syscall.Close(from)
		}
		if err != nil {
			return bad(err)
		}
		from = next
	}
	if len(parts) > 1 {
		defer syscall.Close(from)
	}
	err = linkat(from, parts[len(parts)-1], dir, u.temporary)
	if err == syscall.ENOENT || err == syscall.EPERM {
		return bad(err)
	}
	return err
}

func (u *unpacker) makeNode(dir int, header *tar.Header, owner *Owner, kind uint32) error {
	device := 0
	if kind != syscall.S_IFIFO {
		if header.Devmajor < 0 || header.Devmajor > 0xfff || header.Devminor < 0 || header.Devminor > 0xfffff {
			return newError(process.BadRequest, header.Name, "device number out of range")
		}
		device = deviceNumber(header.Devmajor, header.Devminor)
	}
	if err := syscall.Mknodat(dir, u.temporary, kind|0o600, device); err != nil {
		return err
	}
	if owner != nil {
		if err := syscall.Fchownat(dir, u.temporary, int(owner.UID), int(owner.GID), atSymlinkNoFollow); err != nil {
			return err
		}
	}
	if err := chmodat(dir, u.temporary, modeOf(header)); err != nil {
		return err
	}
	return setTimes(dir, u.temporary, mtimeOf(header))
}

// ownerOf returns the owner for a member. Nil means the user who acts.
func (u *unpacker) ownerOf(header *tar.Header) (*Owner, error) {
	if !u.keep {
		return u.owner, nil
	}
	// The highest ID means "unchanged" to the kernel.
	if header.Uid < 0 || header.Uid >= math.MaxUint32 || header.Gid < 0 || header.Gid >= math.MaxUint32 {
		return nil, newError(process.BadRequest, header.Name, "user or group ID out of range")
	}
	return &Owner{uint32(header.Uid), uint32(header.Gid)}, nil
}

func modeOf(header *tar.Header) uint32 { return uint32(header.Mode & 0o7777) }

func mtimeOf(header *tar.Header) syscall.Timespec {
	return syscall.Timespec{Sec: header.ModTime.Unix(), Nsec: int64(header.ModTime.Nanosecond())}
}
