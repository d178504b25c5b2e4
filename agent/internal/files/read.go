package files

import (
	"io"
	"syscall"

	"squib/agent/internal/process"
)

// errTruncated returns the error for a file that was truncated while it was read.
func errTruncated(path string) error {
	return newError(process.Internal, path, "truncated while being read")
}

// Reader reads a range of a regular file.
type Reader struct {
	// Length is the number of bytes to read. It is -1 for files of procfs and sysfs, whose reported
	// sizes are wrong (0 and too large): they are read until their end.
	Length int64

	path   string
	fd     int
	offset int64
	limit  int64
}

// Open opens the regular file at path, to read up to length bytes from offset.
func Open(path string, offset, length int64) (*Reader, error) {
	var st syscall.Stat_t
	// Check before opening, since opening a device can have effects. measure checks again, in case
	// the file was replaced in between.
	if err := statPath(path, &st, true); err != nil {
		return nil, fail(path, err)
	}
	if err := regular(path, &st); err != nil {
		return nil, err
	}
	fd, err := openat(atFdCwd, path, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, fail(path, err)
	}
	r := &Reader{path: path, fd: fd, offset: offset, limit: length}
	if err := r.measure(); err != nil {
		r.Close()
		return nil, fail(path, err)
	}
	return r, nil
}

func (r *Reader) measure() error {
	var st syscall.Stat_t
	if err := syscall.Fstat(r.fd, &st); err != nil {
		return err
	}
	if err := regular(r.path, &st); err != nil {
		return err
	}
	if st.Size > 0 && !onKernelFilesystem(r.fd) {
		r.Length = min(max(st.Size-r.offset, 0), r.limit)
	} else {
		n, err := syscall.Pread(r.fd, make([]byte, 1), r.offset)
		if err != nil {
			return err
		}
		if n > 0 {
			r.Length = -1
		}
	}
	if r.offset > 0 {
		_, err := syscall.Seek(r.fd, r.offset, io.SeekStart)
		return err
	}
	return nil
}

func regular(path string, st *syscall.Stat_t) error {
	if isType(st, syscall.S_IFREG) {
		return nil
	}
	code := NotAFile
	if isType(st, syscall.S_IFDIR) {
		code = IsADirectory
	}
	return newError(code, path, "is a "+types[st.Mode&syscall.S_IFMT]+", not a regular file")
}

// WriteTo writes the range to w in large pieces. It fails if the file holds less than Length bytes.
func (r *Reader) WriteTo(w io.Writer) (sent int64, err error) {
	buffer := takeBuffer()
	defer putBuffer(buffer)
	if r.Length > keepCached {
		return r.bulkTo(w, buffer)
	}
	want := r.Length
	if want < 0 {
		want = r.limit
	}
	for sent < want {
		n, err := read(r.fd, buffer[:min(want-sent, int64(len(buffer)))])
		if err != nil {
			return sent, fail(r.path, err)
		}
		if n == 0 {
			if r.Length < 0 {
				return sent, nil
			}
			return sent, errTruncated(r.path)
		}
		if _, err := w.Write(buffer[:n]); err != nil {
			return sent, err
		}
		sent += int64(n)
	}
	return sent, nil
}

func (r *Reader) bulkTo(w io.Writer, buffer []byte) (sent int64, err error) {
	b := newBulk(r.fd, r.offset, buffer)
	defer b.close()
	for sent < r.Length {
		p, err := b.read(r.Length - sent)
		if err != nil {
			return sent, fail(r.path, err)
		}
		if len(p) == 0 {
			return sent, errTruncated(r.path)
		}
		if _, err := w.Write(p); err != nil {
			return sent, err
		}
		sent += int64(len(p))
	}
	return sent, nil
}

// Close closes the file.
func (r *Reader) Close() { syscall.Close(r.fd) }
