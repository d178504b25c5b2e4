package files

import (
	"sync"
	"sync/atomic"
)

const (
	// bufferSize is what files are read and written by, and what goes to the host in one piece. Larger pieces gain nothing.
	bufferSize = 256 << 10

	// Transfers may stand still for as long as their clients like, and nothing bounds how many do. Those above the first get small buffers: what
	// they lose is little, what hundreds hold is the memory of a small guest.
	smallBuffer = 32 << 10
	mostBuffers = 16
)

var (
	// buffers are those of bufferSize. Of either size they begin at the border of a page, as direct reads and writes ask for.
	buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}
	// inUse is how many buffers there are, of both sizes.
	inUse atomic.Int32
)

// claimBuffer says how large a buffer may be that is made now, and counts it until unclaimBuffer.
func claimBuffer() int {
	if inUse.Add(1) > mostBuffers {
		return smallBuffer
	}
	return bufferSize
}

func unclaimBuffer() { inUse.Add(-1) }

// takeBuffer returns a buffer, of either size, which is the caller's until putBuffer.
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
