package files

import (
	"archive/tar"
	"bufio"
	"errors"
	"hash/maphash"
	"io"
	"strings"
	"syscall"

	"squib/agent/internal/process"
)

// UnpackResult counts what was unpacked.
type UnpackResult struct {
	Entries int64 `json:"entries"`
	Bytes   int64 `json:"bytes"`
}

// Unpack unpacks a tar archive into the directory at path. New files belong to owner, with keep to
// the archive's owners, and otherwise to the user who acts. Each file takes its name atomically, and has the name
// temporary before. When Unpack returns, everything is on the disk. What was unpacked before an
// error stays.
func Unpack(path string, archive io.Reader, owner *Owner, keep bool, temporary string) (count UnpackResult, err error) {
	root, err := openat(atFdCwd, path, syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return count, fail(path, err)
	}
	defer syscall.Close(root)
	u := &unpacker{path: path, owner: owner, keep: keep, temporary: temporary}
	if count, err = u.unpack(root, archive); err == nil {
		err = fail(path, syncAll(root))
	}
	return count, err
}

// UnpackNew unpacks a tar archive as the new directory at path. It unpacks into a directory with the
// name temporary, which takes its name at the end and is then on the disk; on failure nothing stays.
func UnpackNew(path string, archive io.Reader, owner *Owner, keep bool, temporary string) (count UnpackResult, err error) {
	parent, name := split(strings.TrimRight(path, "/"))
	if name == "" || name == "." || name == ".." {
		return count, fail(path, syscall.EEXIST)
	}
	dir, err := openat(atFdCwd, parent, oPath|syscall.O_DIRECTORY, 0)
	if err != nil {
		return count, fail(path, err)
	}
	defer syscall.Close(dir)
	var st syscall.Stat_t
	if fstatat(dir, name, &st, atSymlinkNoFollow) == nil {
		return count, fail(path, syscall.EEXIST)
	}
	if err := syscall.Mkdirat(dir, temporary, defaultDirMode); err != nil {
		return count, fail(path, err)
	}
	root, err := openat(dir, temporary, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err == nil {
		defer syscall.Close(root)
		if owner != nil {
			err = syscall.Fchown(root, int(owner.UID), int(owner.GID))
		}
	}
	if err == nil {
		u := &unpacker{path: path, isNew: true, owner: owner, keep: keep, temporary: temporary}
		count, err = u.unpack(root, archive)
	}
	if err == nil {
		err = syncAll(root) // before the rename: the name never stands for half of the content
	}
	if err == nil {
		if err = syscall.Renameat(dir, temporary, dir, name); err == nil {
			return count, fail(path, syncFile(root))
		}
	}
	removeDir(dir, temporary, true, temporary, maxDepth)
	return count, fail(path, err)
}

// unpack unpacks an archive into the open directory root.
func (u *unpacker) unpack(root int, archive io.Reader) (count UnpackResult, err error) {
	if root, err = syscall.Dup(root); err != nil {
		return count, fail(u.path, err)
	}
	u.seed, u.links, u.timed = maphash.MakeSeed(), map[inode]bool{}, map[uint64]bool{}
	u.stack = []level{{fd: root}}
	defer u.pop(0)
	reader := tar.NewReader(bufio.NewReaderSize(archive, claimBuffer()))
	defer unclaimBuffer()
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return count, u.pop(0)
		}
		if err == nil && header.Typeflag == tar.TypeXGlobalHeader {
			if problem := header.PAXRecords[errorRecord]; problem != "" {
				return count, &process.Error{Code: process.BadRequest, Message: "incomplete archive: " + problem}
			}
			continue
		}
		var size int64
		if err == nil {
			size, err = u.add(header, reader)
		}
		if err != nil {
			return count, archiveError(err)
		}
		count.Entries++
		count.Bytes += size
	}
}

// archiveError converts errors of the tar reader: the archive is at fault.
func archiveError(err error) error {
	var known *process.Error
	switch {
	case errors.As(err, &known):
	case strings.HasPrefix(err.Error(), "archive/tar: "):
		return &process.Error{Code: process.BadRequest, Message: "not a tar archive, or a damaged one"}
	case errors.Is(err, io.ErrUnexpectedEOF):
		return &process.Error{Code: process.BadRequest, Message: "truncated archive"}
	}
	return err
}

var errOwnLink = errors.New("member below a symbolic link of the same archive")

type unpacker struct {
	path      string
	isNew     bool // path was created for this archive, and gets the mode, time and owner in it
	owner     *Owner
	keep      bool
	temporary string
	seed      maphash.Seed
	stack     []level // open directories, from path to the last member's directory
	links     map[inode]bool
	timed     map[uint64]bool // hashes of the paths of directories whose time is set and that are closed
}

// maxRemembered bounds the remembered links and directories of an archive.
const maxRemembered = 1 << 18

// level is an open directory. Its time is set when it is closed, because creating entries changes
// it.
type level struct {
	name  string
	fd    int
	mtime *syscall.Timespec
}

// add unpacks a member.
func (u *unpacker) add(header *tar.Header, content io.Reader) (size int64, err error) {
	parts, err := components(header.Name)
	if err != nil {
		return 0, err
	}
	owner, err := u.ownerOf(header)
	if err != nil {
		return 0, err
	}
	if header.Typeflag == tar.TypeDir {
		return 0, u.addDir(header, parts, owner)
	}
	if len(parts) == 0 {
		return 0, newError(process.BadRequest, header.Name, "not a file name")
	}
	if err := u.enter(parts[:len(parts)-1]); err != nil {
		return 0, err
	}
	dir, name, shown := u.stack[len(u.stack)-1].fd, parts[len(parts)-1], u.shown(header.Name)
	switch header.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		size, err = u.makeFile(dir, header, owner, content)
	case tar.TypeLink:
		err = u.makeLink(dir, header)
	case tar.TypeSymlink:
		err = u.makeSymlink(dir, header, owner)
	case tar.TypeChar:
		err = u.makeNode(dir, header, owner, syscall.S_IFCHR)
	case tar.TypeBlock:
		err = u.makeNode(dir, header, owner, syscall.S_IFBLK)
	case tar.TypeFifo:
		err = u.makeNode(dir, header, owner, syscall.S_IFIFO)
	default:
		return 0, newError(process.BadRequest, header.Name, "unknown member type "+quote(string(rune(header.Typeflag))))
	}
	if err == nil {
		err = syscall.Renameat(dir, u.temporary, dir, name)
	}
	if err != nil || header.Typeflag == tar.TypeLink { // renaming one link of a file to another does nothing
		unlinkat(dir, u.temporary, 0)
	}
	return size, fail(shown, err)
}

func (u *unpacker) shown(member string) string { return join(u.path, strings.TrimRight(member, "/")) }

// components splits a member's name. It rejects absolute names and "..".
func components(name string) (parts []string, err error) {
	if strings.HasPrefix(name, "/") {
		return nil, newError(process.BadRequest, name, "absolute name in the archive")
	}
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			return nil, newError(process.BadRequest, name, "name with .. in the archive")
		default:
			parts = append(parts, part)
		}
	}
	if len(parts) > maxDepth {
		return nil, newError(process.BadRequest, name, "name in the archive is nested too deep")
	}
	return parts, nil
}

// enter opens the directories of a path and creates missing ones. Directories that are open already
// stay open.
func (u *unpacker) enter(parts []string) error {
	same := 0
	for same < len(parts) && same+1 < len(u.stack) && u.stack[same+1].name == parts[same] {
		same++
	}
	if err := u.pop(same + 1); err != nil {
		return err
	}
	for i := same; i < len(parts); i++ {
		dir := u.stack[i].fd
		fd, err := u.open(dir, parts[i])
		if err == syscall.ENOENT {
			if err = syscall.Mkdirat(dir, parts[i], defaultDirMode); err == nil {
				if fd, err = u.open(dir, parts[i]); err == nil && u.owner != nil {
					err = syscall.Fchown(fd, int(u.owner.UID), int(u.owner.GID))
				}
			}
		}
		if err == errOwnLink {
			return newError(process.BadRequest, strings.Join(parts, "/"), err.Error())
		}
		if err != nil {
			return fail(u.shown(strings.Join(parts[:i+1], "/")), err)
		}
		next := level{name: parts[i], fd: fd}
		u.stack = append(u.stack, next)
		if u.timed[u.hash()] {
			var st syscall.Stat_t
			if err := syscall.Fstat(fd, &st); err != nil {
				return fail(u.shown(strings.Join(parts[:i+1], "/")), err)
			}
			u.stack[i+1].mtime = &st.Mtim
		}
	}
	return nil
}

// pop closes directories until n are open.
func (u *unpacker) pop(n int) (err error) {
	for len(u.stack) > n {
		last := u.stack[len(u.stack)-1]
		if last.mtime != nil {
			if timeErr := setTimes(last.fd, "", *last.mtime); timeErr != nil && err == nil {
				err = fail(u.path, timeErr)
			}
			if len(u.timed) < maxRemembered {
				u.timed[u.hash()] = true
			}
		}
		syscall.Close(last.fd)
		u.stack = u.stack[:len(u.stack)-1]
	}
	return err
}

// hash identifies the path of the innermost open directory. Inode numbers do not: overlayfs assigns
// a new one after it has evicted a directory.
func (u *unpacker) hash() uint64 {
	var h maphash.Hash
	h.SetSeed(u.seed)
	for _, level := range u.stack {
		h.WriteString(level.name)
		h.WriteByte('/')
	}
	return h.Sum64()
}

// open opens the directory name in dir. It follows a symbolic link unless the archive created it.
func (u *unpacker) open(dir int, name string) (int, error) {
	const flags = syscall.O_RDONLY | syscall.O_DIRECTORY
	fd, err := openat(dir, name, flags|syscall.O_NOFOLLOW, 0)
	if err != syscall.ENOTDIR && err != syscall.ELOOP {
		return fd, err
	}
	var st syscall.Stat_t
	if err := fstatat(dir, name, &st, atSymlinkNoFollow); err != nil {
		return 0, err
	}
	if !isType(&st, syscall.S_IFLNK) {
		return 0, syscall.ENOTDIR
	}
	if u.links[inodeOf(&st)] {
		return 0, errOwnLink
	}
	return openat(dir, name, flags, 0)
}

func (u *unpacker) addDir(header *tar.Header, parts []string, owner *Owner) error {
	shown := u.shown(header.Name)
	isNew := u.isNew
	if len(parts) > 0 {
		if err := u.enter(parts[:len(parts)-1]); err != nil {
			return err
		}
		made, err := u.makeDir(parts[len(parts)-1])
		if err == nil {
			err = u.enter(parts)
		}
		if err != nil {
			return fail(shown, err)
		}
		isNew = made
	} else if err := u.pop(1); err != nil || !u.isNew {
		return err
	}
	last := &u.stack[len(u.stack)-1]
	if owner != nil && (isNew || u.keep) {
		if err := syscall.Fchown(last.fd, int(owner.UID), int(owner.GID)); err != nil {
			return fail(shown, err)
		}
	}
	mtime := mtimeOf(header)
	last.mtime = &mtime
	err := setXattrs(last.fd, header.PAXRecords)
	if err == nil {
		err = syscall.Fchmod(last.fd, modeOf(header))
	}
	if (err == syscall.EPERM || err == syscall.EACCES) && !isNew { // it belongs to another user than the one who acts
		last.mtime, err = nil, nil
	}
	return fail(shown, err)
}

// makeDir creates a directory, replacing anything that is not one. A symbolic link to a directory
// counts as one unless the archive created it.
func (u *unpacker) makeDir(name string) (made bool, err error) {
	dir := u.stack[len(u.stack)-1].fd
	if err = syscall.Mkdirat(dir, name, 0o700); err != syscall.EEXIST {
		return err == nil, err
	}
	fd, err := u.open(dir, name)
	if err == nil {
		syscall.Close(fd)
		return false, nil
	}
	if err != syscall.ENOTDIR && err != syscall.ENOENT && err != errOwnLink {
		return false, err
	}
	if err := unlinkat(dir, name, 0); err != nil {
		return false, err
	}
	return true, syscall.Mkdirat(dir, name, 0o700)
}
