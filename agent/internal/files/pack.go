package files

import (
	"archive/tar"
	"bufio"
	"errors"
	"io"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"squib/agent/internal/process"
)

const (
	// errorRecord is the PAX record that tells why an archive is incomplete.
	errorRecord = "SQUIB.error"
	// maxHardLinks bounds how many files with several links are remembered at a time. Further ones
	// are archived as separate files.
	maxHardLinks = 1 << 16
)

// inode identifies a file.
type inode struct{ device, number uint64 }

func inodeOf(st *syscall.Stat_t) inode { return inode{st.Dev, st.Ino} }

// Names maps the image's user and group IDs to names.
type Names struct{ Users, Groups map[uint32]string }

// Packer writes files and directories as a tar archive.
type Packer struct {
	names Names
	// xattrs is whether the archive keeps extended attributes of the user namespace.
	xattrs bool
	items  []item
	links  map[inode]*hardLink
	out    *bufio.Writer
	// onKernelFilesystem is set while the requested directory itself is in /proc or /sys.
	onKernelFilesystem bool
	tar                *tar.Writer
}

// item is a requested file and its name in the archive.
type item struct{ path, member string }

// hardLink is a file with several links; one of them is in the archive.
type hardLink struct {
	member string
	left   uint64 // links not yet found
}

// NewPacker checks that the paths exist. Each is archived under its last component; a path that
// ends in "/" or "/." stands for its contents.
func NewPacker(paths []string, names Names, xattrs bool) (*Packer, error) {
	p := &Packer{names: names, xattrs: xattrs, links: map[inode]*hardLink{}}
	for _, path := range paths {
		var st syscall.Stat_t
		if err := statPath(path, &st, true); err != nil {
			return nil, fail(path, err)
		}
		_, member := split(path)
		switch member {
		case "", ".":
			member = "."
			if !isType(&st, syscall.S_IFDIR) {
				return nil, fail(path, syscall.ENOTDIR)
			}
		case "..":
			return nil, newError(process.BadRequest, path, "a path that ends in .. has no name in the archive")
		}
		p.items = append(p.items, item{path, member})
	}
	return p, nil
}

// Pack writes the archive. If a file cannot be read, the archive ends there with an error record.
// Pack returns only errors of w.
func (p *Packer) Pack(w io.Writer) error {
	p.out = bufio.NewWriterSize(w, claimBuffer())
	defer unclaimBuffer()
	p.tar = tar.NewWriter(p.out)
	for _, item := range p.items {
		err := p.add(atFdCwd, item.path, item.path, item.member, 0)
		var known *process.Error
		if errors.As(err, &known) {
			record := map[string]string{errorRecord: known.Message}
			err = p.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: record, Format: tar.FormatPAX})
			if err == nil {
				break
			}
		}
		if err != nil {
			return err
		}
	}
	if err := p.tar.Close(); err != nil {
		return err
	}
	return p.out.Flush()
}

// add archives the file name in dir, and everything below it, as member; shown is its path for
// error messages. It follows a symbolic link only at depth 0. Read errors are of type
// *process.Error.
func (p *Packer) add(dir int, name, shown, member string, depth int) error {
	var st syscall.Stat_t
	var err error
	if depth == 0 {
		err = statPath(name, &st, true)
	} else {
		err = fstatat(dir, name, &st, atSymlinkNoFollow)
	}
	if err == syscall.ENOENT {
		return nil
	}
	if err != nil {
		return fail(shown, err)
	}
	header := &tar.Header{
		Name: member, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		Uname: p.names.Users[st.Uid], Gname: p.names.Groups[st.Gid],
		ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
	}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		return p.addDir(dir, name, shown, header, depth)
	case syscall.S_IFSOCK:
		return nil
	}
	manyNames := isType(&st, syscall.S_IFREG) && st.Nlink > 1
	if link := p.links[inodeOf(&st)]; link != nil && manyNames {
		if link.left--; link.left == 0 {
			delete(p.links, inodeOf(&st))
		}
		header.Typeflag, header.Linkname = tar.TypeLink, link.member
		return p.header(header)
	}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		header.Typeflag, header.Size = tar.TypeReg, st.Size
		if wrote, err := p.addFile(dir, name, shown, header, depth); !wrote || err != nil {
			return err
		}
	case syscall.S_IFLNK:
		header.Typeflag = tar.TypeSymlink
		if header.Linkname, err = readlinkat(dir, name); err == syscall.ENOENT {
			return nil
		} else if err != nil {
			return fail(shown, err)
		}
	case syscall.S_IFIFO:
		header.Typeflag = tar.TypeFifo
	case syscall.S_IFCHR, syscall.S_IFBLK:
		header.Typeflag = tar.TypeChar
		if isType(&st, syscall.S_IFBLK) {
			header.Typeflag = tar.TypeBlock
		}
		header.Devmajor, header.Devminor = major(st.Rdev), minor(st.Rdev)
	}
	if header.Typeflag != tar.TypeReg {
		if err := p.header(header); err != nil {
			return err
		}
	}
	if manyNames && len(p.links) < maxHardLinks {
		p.links[inodeOf(&st)] = &hardLink{member, uint64(st.Nlink) - 1}
	}
	return nil
}

func (p *Packer) header(header *tar.Header) error {
	if !utf8.ValidString(header.Name) || !utf8.ValidString(header.Linkname) {
		if header.PAXRecords == nil {
			header.PAXRecords = map[string]string{}
		}
		header.PAXRecords["hdrcharset"] = "BINARY"
	}
	return p.tar.WriteHeader(header)
}

func (p *Packer) addDir(dir int, name, shown string, header *tar.Header, depth int) error {
	if depth > maxDepth {
		return tooDeep(shown)
	}
	flags := syscall.O_RDONLY | syscall.O_DIRECTORY
	if depth > 0 {
		flags |= syscall.O_NOFOLLOW
	}
	fd, err := openat(dir, name, flags, 0)
	if err == syscall.ENOENT {
		return nil
	}
	if err != nil {
		return fail(shown, err)
	}
	defer syscall.Close(fd)
	prefix := header.Name + "/"
	header.Typeflag, header.Name = tar.TypeDir, prefix
	if p.xattrs {
		header.PAXRecords = xattrsOf(fd)
	}
	if err := p.header(header); err != nil {
		return err
	}
	if depth == 0 {
		p.onKernelFilesystem = onKernelFilesystem(fd)
	} else if !p.onKernelFilesystem && onKernelFilesystem(fd) {
		return nil
	}
	return fail(shown, eachEntry(fd, func(entry string) error {
		return p.add(fd, entry, join(shown, entry), strings.TrimPrefix(prefix, "./")+entry, depth+1)
	}))
}

// addFile archives a regular file. It writes nothing if the file has been removed meanwhile.
func (p *Packer) addFile(dir int, name, shown string, header *tar.Header, depth int) (wrote bool, err error) {
	if header.Size == 0 { // includes files of procfs, which may be endless
		if p.xattrs {
			flags := oPath
			if depth > 0 {
				flags |= syscall.O_NOFOLLOW
			}
			if fd, err := openat(dir, name, flags, 0); err == nil {
				header.PAXRecords = xattrsOf(fd)
				syscall.Close(fd)
			}
		}
		return true, p.header(header)
	}
	flags := syscall.O_RDONLY | syscall.O_NONBLOCK | syscall.O_NOCTTY
	if depth > 0 {
		flags |= syscall.O_NOFOLLOW
	}
	fd, err := openat(dir, name, flags, 0)
	if err == syscall.ENOENT || err == syscall.ELOOP {
		return false, nil
	}
	if err != nil {
		return false, fail(shown, err)
	}
	defer syscall.Close(fd)
	if p.xattrs {
		header.PAXRecords = xattrsOf(fd)
	}
	buffer := takeBuffer()
	defer putBuffer(buffer)
	if header.Size <= int64(len(buffer)) {
		// Read the whole file before writing its header, so that the header has the true size:
		// sysfs reports sizes that are too large.
		n, err := readFull(fd, buffer[:header.Size])
		if err != nil {
			return false, fail(shown, err)
		}
		header.Size = int64(n)
		if err := p.header(header); err != nil {
			return false, err
		}
		_, err = p.tar.Write(buffer[:n])
		return true, err
	}
	if err := p.header(header); err != nil {
		return false, err
	}
	return true, p.content(fd, shown, header.Size, buffer)
}

// content writes size bytes of a file. After a read error it writes zeros up to that size, so that
// the error record can follow.
func (p *Packer) content(fd int, shown string, size int64, buffer []byte) error {
	next := func(most int64) ([]byte, error) {
		n, err := readFull(fd, buffer[:min(most, int64(len(buffer)))])
		return buffer[:n], err
	}
	if size > keepCached {
		b := newBulk(fd, 0, buffer)
		defer b.close()
		next = b.read
	}
	var failed error
	for done := int64(0); done < size; {
		var piece []byte
		if failed == nil {
			var err error
			if piece, err = next(size - done); err != nil {
				failed = fail(shown, err)
			} else if len(piece) == 0 {
				failed = errTruncated(shown)
			}
		}
		if failed != nil {
			clear(buffer)
			piece = buffer[:min(size-done, int64(len(buffer)))]
		}
		if _, err := p.tar.Write(piece); err != nil {
			return err
		}
		done += int64(len(piece))
	}
	return failed
}

// major and minor split a device number as encoded by the kernel's new_encode_dev.
func major(device uint64) int64 { return int64(device >> 8 & 0xfff) }
func minor(device uint64) int64 { return int64(device&0xff | device>>12&0xfff00) }

func deviceNumber(major, minor int64) int { return int(minor&0xff | major<<8 | minor&^0xff<<12) }
