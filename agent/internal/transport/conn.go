package transport

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// smallRead is the size below which reads go through the listener's buffer. HTTP/2 reads nine bytes
// and then a payload. A virtio port returns at most a page per call, so larger reads go directly to
// the caller's memory.
const smallRead = 4096

// past is a deadline that interrupts reads and writes.
var past = time.Unix(1, 0)

// Conn is one HTTP/2 session on a port. Read returns io.EOF when the host closes the stream or
// starts a new handshake. Close ends the session, not the port.
type Conn struct {
	l      *PortListener
	closed atomic.Bool
	done   chan struct{}
	once   sync.Once

	rd      sync.Mutex // held while reading from the port
	preface string     // the rest of the client preface, which the scanner has consumed, to replay
	frames  framing
	over    bool

	wr      sync.Mutex // held while writing to the port
	credits credits
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	c.rd.Lock()
	defer c.rd.Unlock()
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	if c.preface != "" {
		n := copy(p, c.preface)
		c.preface = c.preface[n:]
		return n, nil
	}
	if c.over {
		return 0, io.EOF
	}
	n, err := c.l.read(p)
	if err != nil {
		c.over = true
		return 0, err
	}
	good, next, overflow := c.frames.advance(p[:n])
	if !overflow {
		return n, nil
	}
	c.over = true
	c.l.unread(c.frames.header[:], p[next:n])
	if good == 0 {
		return 0, io.EOF
	}
	return good, nil
}

// Write implements net.Conn. While the host does not read, it blocks until Close.
func (c *Conn) Write(p []byte) (int, error) {
	c.wr.Lock()
	defer c.wr.Unlock()
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	if out := c.credits.filter(p); len(out) > 0 {
		if _, err := c.l.port.Write(out); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// Close ends the session. It interrupts reads and writes; the listener then scans for the next
// handshake.
func (c *Conn) Close() error {
	c.once.Do(func() {
		c.closed.Store(true)
		c.l.port.SetReadDeadline(past)
		c.l.port.SetWriteDeadline(past)
		close(c.done)
	})
	return nil
}

// drain waits until a closed session has stopped using the port. The deadlines set by Close
// interrupt calls in progress; later calls see that the session is closed.
func (c *Conn) drain() {
	c.rd.Lock()
	defer c.rd.Unlock()
	c.wr.Lock()
	defer c.wr.Unlock()
}

type addr string

func (addr) Network() string  { return "squib" }
func (a addr) String() string { return string(a) }

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return addr("guest") }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return addr("host") }

// SetDeadline does nothing: Close uses the port's deadlines.
func (c *Conn) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing, like SetDeadline.
func (c *Conn) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing, like SetDeadline.
func (c *Conn) SetWriteDeadline(time.Time) error { return nil }
