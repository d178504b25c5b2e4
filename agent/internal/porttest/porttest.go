// Package porttest provides a virtio port without a device, for tests. The guest's end is a
// transport.Port; the host's ends are sockets that are connected and closed.
package porttest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Port is the guest's end.
type Port struct {
	t       *testing.T
	mu      sync.Mutex
	changed *sync.Cond
	guest   net.Conn // nil while no host is connected
	read    time.Time
	write   time.Time
}

// New returns a port without a connected host.
func New(t *testing.T) *Port {
	p := &Port{t: t}
	p.changed = sync.NewCond(&p.mu)
	return p
}

// Connect connects a host. Only one can be connected at a time: close the previous one first.
func (p *Port) Connect() net.Conn {
	p.t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "port")
		if ends[i], err = net.FileConn(f); err != nil {
			p.t.Fatal(err)
		}
		f.Close()
	}
	p.t.Cleanup(func() { ends[0].Close(); ends[1].Close() })
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.guest != nil {
		p.changed.Wait()
	}
	p.guest = ends[0]
	p.guest.SetReadDeadline(p.read)
	p.guest.SetWriteDeadline(p.write)
	p.changed.Broadcast()
	return ends[1]
}

func (p *Port) current() net.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.guest
}

// Read implements transport.Port.
func (p *Port) Read(b []byte) (int, error) {
	conn := p.current()
	if conn == nil {
		return 0, io.EOF
	}
	n, err := conn.Read(b)
	if errors.Is(err, syscall.ECONNRESET) {
		// The host has closed its end before it read everything. A device has no such error.
		err = io.EOF
	}
	if err == io.EOF {
		p.mu.Lock()
		p.guest = nil
		p.changed.Broadcast()
		p.mu.Unlock()
	}
	return n, err
}

// ReadWait implements transport.Port.
func (p *Port) ReadWait(b []byte) (int, error) {
	for {
		n, err := p.Read(b)
		if err != io.EOF {
			return n, err
		}
		p.mu.Lock()
		for p.guest == nil {
			if expired(p.read) {
				p.mu.Unlock()
				return 0, os.ErrDeadlineExceeded
			}
			p.changed.Wait()
		}
		p.mu.Unlock()
	}
}

// Write implements transport.Port. Like the device, it blocks while no host is connected.
func (p *Port) Write(b []byte) (int, error) {
	p.mu.Lock()
	for p.guest == nil {
		if expired(p.write) {
			p.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		}
		p.changed.Wait()
	}
	conn := p.guest
	p.mu.Unlock()
	n, err := conn.Write(b)
	if err != nil && !isTimeout(err) {
		// The host has closed its end; the device would block until Close.
		err = os.ErrDeadlineExceeded
	}
	return n, err
}

// SetReadDeadline implements transport.Port.
func (p *Port) SetReadDeadline(t time.Time) error {
	return p.set(&p.read, t, func(c net.Conn) { c.SetReadDeadline(t) })
}

// SetWriteDeadline implements transport.Port.
func (p *Port) SetWriteDeadline(t time.Time) error {
	return p.set(&p.write, t, func(c net.Conn) { c.SetWriteDeadline(t) })
}

func (p *Port) set(field *time.Time, t time.Time, apply func(net.Conn)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	*field = t
	if p.guest != nil {
		apply(p.guest)
	}
	p.changed.Broadcast()
	return nil
}

func expired(deadline time.Time) bool { return !deadline.IsZero() && !deadline.After(time.Now()) }

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

// Nonce returns the nth nonce.
func Nonce(n int) string { return fmt.Sprintf("%032x", n) }

// Handshake performs the host's part of a handshake on conn, up to the HTTP/2 preface. It skips
// stale bytes from the guest.
func Handshake(t *testing.T, conn net.Conn, nonce string) {
	t.Helper()
	Send(t, conn, "SQUIB-SYNC 1 "+nonce+"\n")
	ReadUntil(t, conn, "SQUIB-OK 1 "+nonce+"\n")
	Send(t, conn, "SQUIB-GO 1 "+nonce+"\n")
}

// Send writes text to the guest.
func Send(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatalf("host's write: %v", err)
	}
	conn.SetWriteDeadline(time.Time{})
}

// ReadUntil reads from the guest through text, and returns what precedes it.
func ReadUntil(t *testing.T, conn net.Conn, text string) string {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	defer conn.SetReadDeadline(time.Time{})
	var got []byte
	for one := make([]byte, 1); len(got) < len(text) || string(got[len(got)-len(text):]) != text; {
		if _, err := conn.Read(one); err != nil {
			t.Fatalf("waiting for %q after %q: %v", text, got, err)
		}
		got = append(got, one[0])
	}
	return string(got[:len(got)-len(text)])
}
