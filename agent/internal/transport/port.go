// Package transport carries HTTP/2 sessions over byte streams that may outlive them. It implements
// the handshake of protocol/agent.md, section 2.
package transport

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// okTimeout bounds the write of an OK line. A host that is present reads it at once. If the host
// has left after its SYNC, the agent must still read the next SYNC.
const okTimeout = 250 * time.Millisecond

// Port is the guest's end of a stream that outlives its sessions.
type Port interface {
	// Read returns io.EOF while no host is connected.
	io.ReadWriter
	// ReadWait is like Read, but blocks while no host is connected, without using CPU time.
	ReadWait(p []byte) (int, error)
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// PortListener accepts sessions on a port, one at a time.
type PortListener struct {
	port    Port
	current *Conn
	closing chan struct{}
	once    sync.Once

	// Bytes read from the port and not yet consumed. They belong to Accept between sessions, and to
	// the session's reader during one.
	pending []byte
	buffer  []byte
}

// NewPortListener returns a listener for the sessions on port. Nothing else may read or write the port from now on.
func NewPortListener(port Port) *PortListener {
	return &PortListener{port: port, closing: make(chan struct{}), buffer: make([]byte, smallRead)}
}

// Accept implements net.Listener. It waits for the end of the previous session, and then for a
// handshake and the client preface.
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
		if l.isClosing() { // checked after clearing the deadline, which Close may have set
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

// reply writes an OK line. A host that does not read it is not an error.
func (l *PortListener) reply(line []byte) error {
	l.port.SetWriteDeadline(time.Now().Add(okTimeout))
	_, err := l.port.Write(line)
	l.port.SetWriteDeadline(time.Time{})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// read returns pending bytes to a session, or reads from the port.
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

// unread puts back bytes that a session has read beyond its end, before those that are pending.
func (l *PortListener) unread(a, b []byte) {
	all := make([]byte, 0, len(a)+len(b)+len(l.pending))
	all = append(all, a...)
	all = append(all, b...)
	l.pending = append(all, l.pending...)
}

// Close makes Accept return net.ErrClosed. The port and the current session stay open.
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
