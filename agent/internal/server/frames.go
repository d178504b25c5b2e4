package server

import (
	"encoding/binary"
	"net/http"
	"sync"
	"time"

	"squib/agent/internal/process"
)

// The kinds of frames in an answer to exec.
const (
	kindStarted = 0
	kindStdout  = 1
	kindStderr  = 2
	kindExit    = 3
	kindIdle    = 4
)

const (
	framesType   = "application/vnd.squib.frames"
	frameHeader  = 13
	framePayload = 65536
)

// putFrameHeader writes the header of a frame to the first bytes of b.
func putFrameHeader(b []byte, kind byte, length int, offset uint64) {
	b[0] = kind
	binary.BigEndian.PutUint32(b[1:], uint32(length))
	binary.BigEndian.PutUint64(b[5:], offset)
}

// frames writes an answer to exec. Its methods may be called from several goroutines: a frame is never split. A
// frame is on its way to the host when they return; they block while the host does not read.
type frames struct {
	mu    sync.Mutex
	w     http.ResponseWriter
	flush func() error
	last  time.Time // of a frame
}

func newFrames(w http.ResponseWriter) *frames {
	w.Header().Set("Content-Type", framesType)
	return &frames{w: w, flush: http.NewResponseController(w).Flush, last: time.Now()}
}

// send writes a frame of a kind that is not a stream.
func (f *frames) send(kind byte, payload []byte) error {
	b := make([]byte, frameHeader, frameHeader+len(payload))
	putFrameHeader(b, kind, len(payload), 0)
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.write(append(b, payload...))
}

// idle sends an idle frame if nothing was sent for the time after, and returns when to ask again.
func (f *frames) idle(after time.Duration) time.Duration {
	if !f.mu.TryLock() {
		return after // a frame is under way
	}
	defer f.mu.Unlock()
	if quiet := time.Since(f.last); quiet < after {
		return after - quiet
	}
	var b [frameHeader]byte
	putFrameHeader(b[:], kindIdle, 0, 0)
	f.write(b[:])
	return after
}

func (f *frames) write(b []byte) error {
	f.last = time.Now()
	if _, err := f.w.Write(b); err != nil {
		return err
	}
	return f.flush()
}

// buffers holds *[frameHeader+framePayload]byte. The payload is read behind the room for its header, so that a frame is one write.
var buffers = sync.Pool{New: func() any { return new([frameHeader + framePayload]byte) }}

// copy sends what a command writes until there is no more of it, or the host has gone.
func (f *frames) copy(kind byte, from *process.Output) error {
	buffer := buffers.Get().(*[frameHeader + framePayload]byte)
	defer buffers.Put(buffer)
	var offset uint64
	for {
		n, err := from.Read(buffer[frameHeader:])
		if err != nil {
			return nil // io.EOF, or a pipe that cannot be read, which is as much an end
		}
		putFrameHeader(buffer[:], kind, n, offset)
		offset += uint64(n)
		f.mu.Lock()
		err = f.write(buffer[:frameHeader+n])
		f.mu.Unlock()
		if err != nil {
			return err
		}
	}
}
