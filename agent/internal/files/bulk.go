package files

import (
	"io"
	"sync/atomic"
	"syscall"
	"unsafe"
)

const (
	// keepCached is how much of a file a transfer may leave in the guest's page cache. The cache
	// belongs to the guest's programs, and dirty pages slow down every writer.
	keepCached = 8 << 20

	// A large buffer speeds up one transfer; many of them would use up the guest's memory.
	bulkPiece = 1 << 20
	bulkMost  = 4

	// directBlock is the alignment of offsets, lengths and addresses for direct I/O. It satisfies
	// every disk.
	directBlock = 4096
)

// bulks counts the large buffers in use, including those about to be allocated.
var bulks atomic.Int32

// bulk reads or writes a large file from an offset on. It bypasses the page cache (O_DIRECT) where
// the filesystem supports that, which takes the guest half the time, and otherwise drops from the
// cache what it has put there. Data that was cached before is read from the cache and stays in it.
type bulk struct {
	fd          int
	buffer      []byte // page-aligned
	large       []byte // memory-mapped, so that it can be freed at once; nil if buffer is the caller's
	canBeDirect bool   // whether direct I/O is possible
	direct      bool   // whether the descriptor is in direct mode
	at, dropped int64
}

// newBulk continues a transfer at the offset at. It uses a large buffer, or spare, the caller's
// buffer so far, if too many large ones are in use: a stalled transfer must not hold both.
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
	b.canBeDirect = at%directBlock == 0 && b.setDirect(true)
	return b
}

func (b *bulk) close() {
	if b.large != nil {
		syscall.Munmap(b.large)
		bulks.Add(-1)
	}
}

// read returns the next bytes of the file, at most the given number and at most a buffer. It
// returns fewer only at the end of the file.
func (b *bulk) read(most int64) ([]byte, error) {
	p := b.buffer[:min(most, int64(len(b.buffer)))]
	if b.canBeDirect {
		b.setDirect(!isCached(b.fd, b.at, len(p)))
	}
	n, err := b.move(read, p)
	return p[:n], err
}

// write writes p, a part of the buffer.
func (b *bulk) write(p []byte) error {
	written, err := b.move(syscall.Write, p)
	if err == nil && written < len(p) {
		err = io.ErrShortWrite
	}
	return err
}

// skip leaves a hole of n bytes.
func (b *bulk) skip(n int) error {
	_, err := syscall.Seek(b.fd, int64(n), io.SeekCurrent)
	b.at += int64(n)
	if b.canBeDirect {
		b.dropped = b.at
	}
	return err
}

func (b *bulk) move(call func(int, []byte) (int, error), p []byte) (done int, err error) {
	for done < len(p) && err == nil {
		if b.direct && (len(p)-done)%directBlock != 0 {
			b.disable() // the unaligned end of the transfer or of the file
		}
		var n int
		n, err = call(b.fd, p[done:])
		switch {
		case err == syscall.EINTR:
			err = nil
		case err == syscall.EINVAL && b.direct: // the filesystem accepted O_DIRECT and does not support it
			b.disable()
			err = nil
		case n > 0:
			done += n
		case err == nil:
			return done, nil
		}
	}
	if b.at += int64(done); b.canBeDirect {
		b.dropped = b.at
	}
	if b.at-b.dropped >= keepCached {
		// The first call starts the write-back of this range, and the next one, a range later,
		// drops it.
		from := max(b.dropped-keepCached, 0)
		dontNeed(b.fd, from, b.at-from)
		b.dropped = b.at
	}
	return done, err
}

func (b *bulk) disable() {
	b.canBeDirect = false
	b.setDirect(false)
}

// setDirect switches direct mode and reports whether the descriptor is in the requested mode.
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

// isCached reports whether more than half of a page-aligned range of a file is in the page cache.
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
