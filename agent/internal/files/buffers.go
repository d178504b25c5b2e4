package files

import (
	"sync"
	"sync/atomic"
)

const (
	// bufferSize is the size of reads, writes and messages to the host. Larger ones gain nothing.
	bufferSize = 256 << 10

	// Clients may stall any number of transfers for any time. Transfers beyond the first few get
	// small buffers: each loses little speed, and hundreds of stalled ones do not exhaust a small
	// guest.
	smallBuffer = 32 << 10
	mostBuffers = 16
)

var (
	// buffers holds buffers of bufferSize. Buffers of both sizes are page-aligned, as direct I/O
	// requires.
	buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}
	// inUse counts the buffers in use, of both sizes.
	inUse atomic.Int32
)

// claimBuffer returns the allowed size of a new buffer, and counts the buffer until unclaimBuffer.
func claimBuffer() int {
	if inUse.Add(1) > mostBuffers {
		return smallBuffer
	}
	return bufferSize
}

func unclaimBuffer() { inUse.Add(-1) }

// takeBuffer returns a buffer of either size. The caller returns it with putBuffer.
func takeBuffer() []byte {
	if claimBuffer() == smallBuffer {
		return make([]byte, smallBuffer)
	}
	return *buffers.Get().(*[]byte)
}

func putBuffer(b []byte) {
	unclaimBuffer()
	if len(b) == bufferSize {
		buffers.Put(&b)
	}
}
