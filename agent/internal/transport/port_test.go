package transport_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"squib/agent/internal/porttest"
	"squib/agent/internal/transport"
)

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// listen serves a port. The channel receives its sessions.
func listen(t *testing.T) (*porttest.Port, <-chan net.Conn) {
	port := porttest.New(t)
	return port, accept(t, transport.NewPortListener(port))
}

// accept accepts the sessions of a listener until the test ends.
func accept(t *testing.T, l net.Listener) <-chan net.Conn {
	sessions := make(chan net.Conn, 16)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			sessions <- conn
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-ended
	})
	return sessions
}

func next(t *testing.T, sessions <-chan net.Conn) net.Conn {
	t.Helper()
	select {
	case conn := <-sessions:
		return conn
	case <-time.After(5 * time.Second):
		t.Fatal("no session")
		return nil
	}
}

func expect(t *testing.T, conn net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Fatalf("got %q, %v, want %q", got, err, want)
	}
}

func frame(length int) string {
	return string([]byte{byte(length >> 16), byte(length >> 8), byte(length), 0, 0, 0, 0, 0, 1}) + strings.Repeat("x", length)
}

func TestSessionCarriesBytesBothWays(t *testing.T) {
	port, sessions := listen(t)
	host := port.Connect()
	porttest.Handshake(t, host, porttest.Nonce(1))
	porttest.Send(t, host, preface+frame(70000))
	conn := next(t, sessions)
	expect(t, conn, preface+frame(70000))
	if _, err := conn.Write([]byte("\x00\x00\x06\x00\x00\x00\x00\x00\x01answer")); err != nil {
		t.Fatal(err)
	}
	porttest.ReadUntil(t, host, "answer")
	conn.Close()
}

func TestHostCloseEndsTheSessionAndTheNextIsAnswered(t *testing.T) {
	port, sessions := listen(t)
	for i := range 5 {
		host := port.Connect()
		porttest.Handshake(t, host, porttest.Nonce(i))
		porttest.Send(t, host, preface+frame(3))
		conn := next(t, sessions)
		expect(t, conn, preface+frame(3))
		host.Close()
		if _, err := conn.Read(make([]byte, 10)); err != io.EOF {
			t.Fatalf("got %v, want EOF", err)
		}
		conn.Close()
	}
}

// The host disconnected and returned while the guest was paused: there is no end of file, and the
// old session may be at any point of a frame.
func TestFlushEndsALiveSessionWhereverItIs(t *testing.T) {
	whole := frame(transport.MaxFrame)
	flush := strings.Repeat("\xff", transport.MaxFrame+9)
	for name, cut := range map[string]int{"between frames": 0, "in a header": 4, "after a header": 9, "in a payload": 5000, "one byte before the end": len(whole) - 1} {
		t.Run(name, func(t *testing.T) {
			port, sessions := listen(t)
			host := port.Connect()
			porttest.Handshake(t, host, porttest.Nonce(1))
			porttest.Send(t, host, preface)
			old := next(t, sessions)
			go func() {
				io.Copy(io.Discard, old)
				old.Close() // as net/http does at the end of file
			}()
			porttest.Send(t, host, frame(100)+whole[:cut]+flush)
			porttest.Handshake(t, host, porttest.Nonce(2))
			porttest.Send(t, host, preface+frame(7))
			expect(t, next(t, sessions), preface+frame(7))
		})
	}
}

func TestSyncBetweenFramesNeedsNoFlush(t *testing.T) {
	port, sessions := listen(t)
	host := port.Connect()
	porttest.Handshake(t, host, porttest.Nonce(1))
	porttest.Send(t, host, preface+frame(100))
	old := next(t, sessions)
	go func() { io.Copy(io.Discard, old); old.Close() }()
	porttest.Handshake(t, host, porttest.Nonce(2))
	porttest.Send(t, host, preface)
	expect(t, next(t, sessions), preface)
}

// All bytes of the old session arrive, with any read size.
func TestOldSessionSeesAllBytesBeforeTheFlush(t *testing.T) {
	for _, size := range []int{1, 9, 100, 4096, 1 << 16} {
		port, sessions := listen(t)
		host := port.Connect()
		porttest.Handshake(t, host, porttest.Nonce(1))
		porttest.Send(t, host, preface+frame(5000)+frame(1)+"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")
		conn := next(t, sessions)
		var got bytes.Buffer
		for buffer := make([]byte, size); ; {
			n, err := conn.Read(buffer)
			got.Write(buffer[:n])
			if err == io.EOF {
				break
			}
		}
		want := preface + frame(5000) + frame(1)
		// up to eight bytes of the invalid header may pass, since they look like any other
		if text := got.String(); !strings.HasPrefix(text, want) || len(text) > len(want)+8 {
			t.Errorf("reads of %d: %d bytes, want %d", size, len(text), len(want))
		}
		conn.Close()
	}
}

func TestCloseEndsABlockedWriteAndABlockedRead(t *testing.T) {
	port, sessions := listen(t)
	host := port.Connect()
	porttest.Handshake(t, host, porttest.Nonce(1))
	porttest.Send(t, host, preface)
	conn := next(t, sessions)
	expect(t, conn, preface)
	ended := make(chan error, 2)
	go func() { // a host that does not read
		for {
			if _, err := conn.Write(make([]byte, 1<<20)); err != nil {
				ended <- err
				return
			}
		}
	}()
	go func() {
		_, err := conn.Read(make([]byte, 1))
		ended <- err
	}()
	conn.Close()
	for range 2 {
		select {
		case err := <-ended:
			if err == nil {
				t.Error("no error")
			}
		case <-time.After(5 * time.Second):
			t.Fatal("still blocked")
		}
	}
	if _, err := conn.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a write after Close: %v", err)
	}
}

// A host that left after its SYNC does not delay the next one.
func TestLostOKDoesNotStopTheScan(t *testing.T) {
	port, sessions := listen(t)
	host := port.Connect()
	porttest.Send(t, host, "SQUIB-SYNC 1 "+porttest.Nonce(1)+"\n")
	host.Close()
	host = port.Connect()
	start := time.Now()
	porttest.Handshake(t, host, porttest.Nonce(2))
	porttest.Send(t, host, preface)
	expect(t, next(t, sessions), preface)
	if took := time.Since(start); took > time.Second {
		t.Errorf("answered after %v", took)
	}
}
