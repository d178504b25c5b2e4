package transport_test

import (
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"squib/agent/internal/porttest"
	"squib/agent/internal/transport"
)

// listenOnSocket serves a unix socket as if it were vsock, and returns a function that connects to it.
func listenOnSocket(t *testing.T) (dial func() net.Conn, sessions <-chan net.Conn) {
	path := filepath.Join(t.TempDir(), "s")
	socket, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l := transport.NewStreamListener(transport.NetStreams(socket))
	accepted := accept(t, l)
	return func() net.Conn {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}, accepted
}

// isClosed waits until the other end of a connection has closed it.
func isClosed(t *testing.T, conn net.Conn) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.Copy(io.Discard, conn); err != nil {
		if e, ok := err.(net.Error); ok && e.Timeout() {
			t.Fatal("still open")
		}
	}
}

func TestStreamCarriesOneSession(t *testing.T) {
	dial, sessions := listenOnSocket(t)
	for i := range 3 {
		host := dial()
		porttest.Handshake(t, host, porttest.Nonce(i))
		porttest.Send(t, host, preface+frame(70000))
		conn := next(t, sessions)
		expect(t, conn, preface+frame(70000))
		if _, err := conn.Write([]byte("\x00\x00\x06\x00\x00\x00\x00\x00\x01answer")); err != nil {
			t.Fatal(err)
		}
		porttest.ReadUntil(t, host, "answer")
		host.Close()
		if _, err := conn.Read(make([]byte, 10)); err == nil {
			t.Fatal("the session outlives its stream")
		}
		conn.Close()
	}
}

func TestNewHandshakeEndsTheSessionBefore(t *testing.T) {
	dial, sessions := listenOnSocket(t)
	first := dial()
	porttest.Handshake(t, first, porttest.Nonce(1))
	porttest.Send(t, first, preface)
	old := next(t, sessions)
	expect(t, old, preface)

	second := dial()
	porttest.Send(t, second, "SQUIB-SYNC 1 "+porttest.Nonce(2)+"\n")
	porttest.ReadUntil(t, second, "SQUIB-OK 1 "+porttest.Nonce(2)+"\n")
	porttest.Send(t, first, frame(5)) // an incomplete handshake elsewhere disturbs nothing
	expect(t, old, frame(5))

	porttest.Send(t, second, "SQUIB-GO 1 "+porttest.Nonce(2)+"\n"+preface+frame(7))
	expect(t, next(t, sessions), preface+frame(7))
	if _, err := old.Read(make([]byte, 10)); err == nil {
		t.Error("the old session goes on")
	}
	isClosed(t, first)
}

func TestStreamCanBeSynchronizedAgain(t *testing.T) {
	dial, sessions := listenOnSocket(t)
	host := dial()
	porttest.Handshake(t, host, porttest.Nonce(1))
	porttest.Send(t, host, preface+frame(100))
	old := next(t, sessions)
	go func() { io.Copy(io.Discard, old); old.Close() }()
	porttest.Handshake(t, host, porttest.Nonce(2))
	porttest.Send(t, host, preface+frame(3))
	expect(t, next(t, sessions), preface+frame(3))
}

func TestSilentStreamsDoNotKeepOthersOut(t *testing.T) {
	dial, sessions := listenOnSocket(t)
	for range 20 {
		porttest.Send(t, dial(), "SQUIB-SY")
	}
	host := dial()
	porttest.Handshake(t, host, porttest.Nonce(1))
	porttest.Send(t, host, preface)
	expect(t, next(t, sessions), preface)
}
