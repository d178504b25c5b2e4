package files

import (
	"bytes"
	"strconv"
	"strings"
	"syscall"
)

const (
	// xattrRecord is the prefix of a PAX record with an extended attribute, as GNU tar and bsdtar
	// write it.
	xattrRecord = "SCHILY.xattr."
	// userXattr is the namespace of attributes that have no effect on the system.
	userXattr = "user."
	// maxXattrs bounds the attributes of a file in an archive; readers limit the size of a header.
	maxXattrs = 256 << 10
)

// descriptorPath is a path to an open file, for system calls that take no descriptors opened with
// O_PATH.
func descriptorPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// xattrsOf returns the attributes of an open file in the user namespace, as PAX records, up to
// maxXattrs bytes. A file system without attributes has none.
func xattrsOf(fd int) map[string]string {
	path := descriptorPath(fd)
	size, err := syscall.Listxattr(path, nil)
	if err != nil || size == 0 {
		return nil
	}
	names := make([]byte, size)
	if size, err = syscall.Listxattr(path, names); err != nil || size == 0 {
		return nil
	}
	var records map[string]string
	value, left := make([]byte, 64<<10), maxXattrs
	for name := range bytes.SplitSeq(names[:size-1], []byte{0}) {
		if !bytes.HasPrefix(name, []byte(userXattr)) || bytes.IndexByte(name, '=') >= 0 {
			continue
		}
		n, err := syscall.Getxattr(path, string(name), value)
		if err != nil || len(name)+n > left {
			continue
		}
		left -= len(name) + n
		if records == nil {
			records = map[string]string{}
		}
		records[xattrRecord+string(name)] = string(value[:n])
	}
	return records
}

// setXattrs sets the attributes in the user namespace that the PAX records of a member hold. A file
// system without attributes ignores them.
func setXattrs(fd int, records map[string]string) error {
	for key, value := range records {
		name, found := strings.CutPrefix(key, xattrRecord)
		if !found || !strings.HasPrefix(name, userXattr) {
			continue
		}
		if err := syscall.Setxattr(descriptorPath(fd), name, []byte(value), 0); err != nil && err != syscall.ENOTSUP {
			return err
		}
	}
	return nil
}
