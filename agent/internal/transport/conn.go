package transport

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// smallRead is the read size below which Conn reads through the listener's buffer. HTTP/2 asks for nine bytes, then
// for a payload; a virtio port gives at most a page a call, so larger reads go straight to the caller's memory.
const smallRead = 4096

// past is a deadline that ends reads and writes in progress.
var past = time.Unix(1, 0)

// Conn is one HTTP/2 session on the port. Reads end with io.EOF when the host closes the stream or
// resynchronizes; Close frees the port for the next session and never closes the port itself.
type Conn struct {
	l      *PortListener
	closed atomic.Bool
	done   chan struct{}
	once   sync.Once

	rd      sync.Mutex // held while the port is read
	preface string     // what is left to replay of the client preface, which the scanner consumed
	frames  framing
	over    bool

	wr      sync.Mutex // held while the port is written
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

// Write implements net.Conn. It blocks while the host does not read, until Close.
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

// Close ends the session: reads and writes in progress return, and the listener scans for the next handshake.
func (c *Conn) Close() error {
	c.once.Do(func() {
		c.closed.Store(true)
		c.l.port.SetReadDeadline(past)
		c.l.port.SetWriteDeadline(past)
		close(c.done)
	})
	return nil
}

// drain waits until a closed session has left the port: the deadlines that Close has set send a reader and a writer
// in progress away, and those that come later see that it is closed.
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

// SetDeadline does nothing: the port's deadlines belong to Close.
func (c *Conn) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing, as SetDeadline.
func (c *Conn) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing, as SetDeadline.
func (c *Conn) SetWriteDeadline(time.Time) error { return nil }
