package server

import (
	"encoding/binary"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"squib/agent/internal/process"
)

// The kinds of frames. The kind for a stream is kindStdout plus its number.
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

// putFrameHeader writes a frame header to the start of b.
func putFrameHeader(b []byte, kind byte, length int, offset int64) {
	b[0] = kind
	binary.BigEndian.PutUint32(b[1:], uint32(length))
	binary.BigEndian.PutUint64(b[5:], uint64(offset))
}

// frames writes frames to a response. Its methods flush what they write, and block while the host
// does not read.
type frames struct {
	w     http.ResponseWriter
	flush func() error
	last  time.Time // when the last frame was sent
}

func newFrames(w http.ResponseWriter) *frames {
	w.Header().Set("Content-Type", framesType)
	return &frames{w: w, flush: http.NewResponseController(w).Flush, last: time.Now()}
}

// send writes a frame that does not belong to a stream.
func (f *frames) send(kind byte, payload []byte) error {
	b := make([]byte, frameHeader, frameHeader+len(payload))
	putFrameHeader(b, kind, len(payload), 0)
	return f.write(append(b, payload...))
}

// idle sends an idle frame if no frame was sent for the duration after. It returns when to check
// again.
func (f *frames) idle(after time.Duration) (time.Duration, error) {
	if quiet := time.Since(f.last); quiet < after {
		return after - quiet, nil
	}
	return after, f.send(kindIdle, nil)
}

func (f *frames) write(b []byte) error {
	f.last = time.Now()
	if _, err := f.w.Write(b); err != nil {
		return err
	}
	return f.flush()
}

// Sizes of one write. Larger ones mean fewer writes, but a host that does not read holds the
// buffer. So only a few buffers are large.
const (
	smallBatch  = frameHeader + framePayload
	largeBatch  = 4 * smallBatch
	mostBatches = 4
)

var (
	smallBatches = sync.Pool{New: func() any { b := make([]byte, smallBatch); return &b }}
	largeBatches = sync.Pool{New: func() any { b := make([]byte, largeBatch); return &b }}
	largeUsed    atomic.Int32
)

// batch returns a buffer, and a function that returns it to its pool.
func batch() ([]byte, func()) {
	pool, done := &largeBatches, func() { largeUsed.Add(-1) }
	if largeUsed.Add(1) > mostBatches {
		done()
		pool, done = &smallBatches, func() {}
	}
	b := pool.Get().(*[]byte)
	return *b, func() { pool.Put(b); done() }
}

// copy sends all output available. It returns io.EOF if there will be no more.
func (f *frames) copy(from *process.Reader) error {
	buffer, done := batch()
	defer done()
	for {
		// Combine short pieces: a write to the response costs more than a copy.
		filled, end := 0, error(nil)
		for filled+frameHeader < len(buffer) {
			stream, offset, n, err := from.Next(buffer[filled+frameHeader : min(filled+smallBatch, len(buffer))])
			if n == 0 {
				end = err
				break
			}
			putFrameHeader(buffer[filled:], kindStdout+byte(stream), n, offset)
			filled += frameHeader + n
		}
		if filled == 0 {
			return end
		}
		if err := f.write(buffer[:filled]); err != nil {
			return err
		}
	}
}

// follow streams a session until it ends. If reader is nil, it sends no output.
func (f *frames) follow(p *process.Process, reader *process.Reader, cancelled <-chan struct{}) error {
	if err := f.send(kindStarted, startedPayload(p)); err != nil {
		return err
	}
	done, ready := p.Done(), (<-chan struct{})(nil)
	if reader != nil {
		done, ready = nil, reader.Ready() // first the output
	}
	idle := time.NewTimer(idleAfter)
	defer idle.Stop()
	for {
		select {
		case <-ready:
			switch err := f.copy(reader); err {
			case nil:
			case io.EOF:
				done, ready = p.Done(), nil
			default:
				return err
			}
		case <-done:
			return f.send(kindExit, exitPayload(p.Status()))
		case <-idle.C:
			next, err := f.idle(idleAfter)
			if err != nil {
				return err
			}
			idle.Reset(next)
		case <-cancelled:
			return errCancelled
		}
	}
}
