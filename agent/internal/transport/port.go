// Package transport carries HTTP/2 sessions over one byte stream that outlives them: the handshake of
// protocol/agent.md, section 2.
package transport

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// okTimeout bounds the write of an OK line. A host that went away after its SYNC must not keep the agent from reading
// the next one; a host that is there reads at once.
const okTimeout = 250 * time.Millisecond

// Port is the guest's end of a stream that outlives its sessions.
type Port interface {
	// Read returns io.EOF while no host is connected.
	io.ReadWriter
	// ReadWait is Read, but waits, without using the processor, while no host is connected.
	ReadWait(p []byte) (int, error)
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// PortListener accepts the sessions on a port, one after the other.
type PortListener struct {
	port    Port
	current *Conn
	closing chan struct{}
	once    sync.Once

	// Read from the port and not consumed. Owned by Accept between sessions and by the session's reader inside one.
	pending []byte
	buffer  []byte
}

// NewPortListener returns a listener for the sessions on port. Nothing else may read or write the port from now on.
func NewPortListener(port Port) *PortListener {
	return &PortListener{port: port, closing: make(chan struct{}), buffer: make([]byte, smallRead)}
}

// Accept waits for the end of the session before and for a handshake. It returns when the client preface is there.
func (l *PortListener) Accept() (net.Conn, error) {
	if l.current != nil {
		select {
		case <-l.current.done:
		case <-l.closing:
			return nil, net.ErrClosed
		}
		l.current.drain()
		l.current = nil
	}
	l.port.SetWriteDeadline(time.Time{})
	l.port.SetReadDeadline(time.Time{})

	var scan scanner
	for {
		if l.isClosing() { // asked after the deadline was cleared, which may have been Close's
			return nil, net.ErrClosed
		}
		if len(l.pending) == 0 {
			n, err := l.port.ReadWait(l.buffer)
			if err != nil && l.isClosing() {
				err = net.ErrClosed
			}
			if err != nil {
				return nil, err
			}
			l.pending = l.buffer[:n]
		}
		n, reply, started := scan.feed(l.pending)
		l.pending = l.pending[n:]
		if started {
			l.current = &Conn{l: l, preface: clientPreface, done: make(chan struct{})}
			return l.current, nil
		}
		if reply != nil {
			if err := l.reply(reply); err != nil {
				return nil, err
			}
		}
	}
}

// reply writes an OK line; that the host is not there to read it is no error.
func (l *PortListener) reply(line []byte) error {
	l.port.SetWriteDeadline(time.Now().Add(okTimeout))
	_, err := l.port.Write(line)
	l.port.SetWriteDeadline(time.Time{})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// read gives a session what is pending, or else what the port has.
func (l *PortListener) read(p []byte) (int, error) {
	if len(l.pending) == 0 {
		if len(p) >= smallRead {
			return l.port.Read(p)
		}
		n, err := l.port.Read(l.buffer)
		if n == 0 {
			return 0, err
		}
		l.pending = l.buffer[:n]
	}
	n := copy(p, l.pending)
	l.pending = l.pending[n:]
	return n, nil
}

// unread puts bytes that a session has read, and that are not its own, before what is pending.
func (l *PortListener) unread(a, b []byte) {
	all := make([]byte, 0, len(a)+len(b)+len(l.pending))
	all = append(all, a...)
	all = append(all, b...)
	l.pending = append(all, l.pending...)
}

// Close ends Accept with net.ErrClosed. The port stays open, and so does the current session.
func (l *PortListener) Close() error {
	l.once.Do(func() {
		close(l.closing)
		l.port.SetReadDeadline(past)
	})
	return nil
}

func (l *PortListener) isClosing() bool {
	select {
	case <-l.closing:
		return true
	default:
		return false
	}
}

// Addr implements net.Listener.
func (l *PortListener) Addr() net.Addr { return addr("guest") }
