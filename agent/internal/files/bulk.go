package files

import (
	"io"
	"sync/atomic"
	"syscall"
)

const (
	// keepCached is how much of a file a transfer may leave in the guest's page cache: the cache belongs to the guest's programs, and
	// dirty pages make everybody wait who writes.
	keepCached = 8 << 20

	// What one transfer gets more by larger pieces, many would pay with the guest's memory.
	bulkPiece = 1 << 20
	bulkMost  = 4

	// directBlock is what the places, lengths and addresses of direct reads and writes are multiples of: at least what any disk asks for.
	directBlock = 4096
)

// bulks is how many large pieces are in use.
var bulks atomic.Int32

// bulk reads or writes a large file from some place on. It does that past the page cache (O_DIRECT) where the filesystem allows,
// which takes the guest half the time, and otherwise drops from the cache what it has put there.
type bulk struct {
	fd          int
	buffer      []byte // mapped: at the border of a page, and gone when it is not used
	direct      bool
	at, dropped int64
}

func newBulk(fd int, at int64) (*bulk, error) {
	size := bulkPiece
	switch used := bulks.Add(1); {
	case used > bulkMost+mostBuffers:
		size = smallBuffer
	case used > bulkMost:
		size = bufferSize
	}
	buffer, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		bulks.Add(-1)
		return nil, err
	}
	b := &bulk{fd: fd, buffer: buffer, at: at, dropped: at}
	b.direct = at%directBlock == 0 && setFlags(fd, syscall.O_DIRECT) == nil
	return b, nil
}

func (b *bulk) close() {
	syscall.Munmap(b.buffer)
	bulks.Add(-1)
}

// read returns the next bytes of the file, at most so many and no more than the buffer holds. They are fewer only at its end.
func (b *bulk) read(most int64) ([]byte, error) {
	p := b.buffer[:min(most, int64(len(b.buffer)))]
	n, err := b.move(read, p)
	return p[:n], err
}

// write writes the first n bytes of the buffer.
func (b *bulk) write(n int) error {
	written, err := b.move(syscall.Write, b.buffer[:n])
	if err == nil && written < n {
		err = io.ErrShortWrite
	}
	return err
}

func (b *bulk) move(call func(int, []byte) (int, error), p []byte) (done int, err error) {
	for done < len(p) && err == nil {
		if (len(p)-done)%directBlock != 0 {
			b.undirect() // the end of what is moved, or of the file
		}
		var n int
		n, err = call(b.fd, p[done:])
		switch {
		case err == syscall.EINTR:
			err = nil
		case err == syscall.EINVAL && b.direct: // the filesystem had only promised it
			b.undirect()
			err = nil
		case n > 0:
			done += n
		case err == nil:
			return done, nil
		}
	}
	b.at += int64(done)
	if !b.direct && b.at-b.dropped >= keepCached {
		// What is written is on its way to the disk after the first call for it, and dropped by the second, a stretch later.
		from := max(b.dropped-keepCached, 0)
		dontNeed(b.fd, from, b.at-from)
		b.dropped = b.at
	}
	return done, err
}

func (b *bulk) undirect() {
	if b.direct {
		b.direct = false
		setFlags(b.fd, 0)
	}
}

func setFlags(fd, flags int) error {
	return errnoOf(syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_SETFL, uintptr(flags)))
}
