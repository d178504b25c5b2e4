package files

import (
	"io"
	"sync/atomic"
	"syscall"
	"unsafe"
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

// bulks is how many large pieces are in use, or about to be.
var bulks atomic.Int32

// bulk reads or writes a large file from some place on. It does that past the page cache (O_DIRECT) where the filesystem allows,
// which takes the guest half the time, and otherwise drops from the cache what it has put there. What is in the cache already is
// read from there, and stays.
type bulk struct {
	fd          int
	buffer      []byte // begins at the border of a page
	large       []byte // mapped: gone when it is not used
	able        bool   // of direct access
	direct      bool   // the file is set to it
	at, dropped int64
}

// newBulk takes a file up where the caller, who has used spare for it so far, has come to. It goes on with spare, or with a large piece: many
// transfers that stand still must not hold both.
func newBulk(fd int, at int64, spare []byte) *bulk {
	b := &bulk{fd: fd, buffer: spare, at: at, dropped: at}
	if bulks.Add(1) <= bulkMost {
		large, err := syscall.Mmap(-1, 0, bulkPiece, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
		if err == nil {
			b.buffer, b.large = large, large
		}
	}
	if b.large == nil {
		bulks.Add(-1)
	}
	b.able = at%directBlock == 0 && b.setDirect(true)
	return b
}

func (b *bulk) close() {
	if b.large != nil {
		syscall.Munmap(b.large)
		bulks.Add(-1)
	}
}

// read returns the next bytes of the file, at most so many and no more than the buffer holds. They are fewer only at its end.
func (b *bulk) read(most int64) ([]byte, error) {
	p := b.buffer[:min(most, int64(len(b.buffer)))]
	if b.able {
		b.setDirect(!isCached(b.fd, b.at, len(p)))
	}
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
		if b.direct && (len(p)-done)%directBlock != 0 {
			b.disable() // the end of what is moved, or of the file
		}
		var n int
		n, err = call(b.fd, p[done:])
		switch {
		case err == syscall.EINTR:
			err = nil
		case err == syscall.EINVAL && b.direct: // the filesystem had only promised it
			b.disable()
			err = nil
		case n > 0:
			done += n
		case err == nil:
			return done, nil
		}
	}
	if b.at += int64(done); b.able {
		b.dropped = b.at
	}
	if b.at-b.dropped >= keepCached {
		// What is written is on its way to the disk after the first call for it, and dropped by the second, a stretch later.
		from := max(b.dropped-keepCached, 0)
		dontNeed(b.fd, from, b.at-from)
		b.dropped = b.at
	}
	return done, err
}

func (b *bulk) disable() {
	b.able = false
	b.setDirect(false)
}

// setDirect reports whether reads and writes are direct now if that was asked for, and are not otherwise.
func (b *bulk) setDirect(on bool) bool {
	if b.direct != on {
		flags := 0
		if on {
			flags = syscall.O_DIRECT
		}
		if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(b.fd), syscall.F_SETFL, uintptr(flags)); errno == 0 {
			b.direct = on
		}
	}
	return b.direct == on
}

// isCached reports whether most of a stretch of a file, from the border of a page on, is in the page cache.
func isCached(fd int, at int64, size int) bool {
	mapped, err := syscall.Mmap(fd, at, size, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return false
	}
	defer syscall.Munmap(mapped)
	var pages [bulkPiece / directBlock]byte
	_, _, errno := syscall.Syscall(syscall.SYS_MINCORE, uintptr(unsafe.Pointer(&mapped[0])), uintptr(size), uintptr(unsafe.Pointer(&pages)))
	cached, all := 0, (size+directBlock-1)/directBlock
	for _, page := range pages[:all] {
		cached += int(page & 1)
	}
	return errno == 0 && 2*cached > all
}
