package transport

import (
	"io"
	"net"
	"sync"
	"time"
)

// Stream is a connection opened by the host, before its handshake. Every net.Conn is a Stream.
type Stream interface {
	io.ReadWriteCloser
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// Streams accepts connections from the host.
type Streams interface {
	Accept() (Stream, error)
	// Close makes Accept return net.ErrClosed.
	Close() error
}

// StreamListener accepts sessions, each on its own stream. A successful handshake ends the previous
// session. Streams without a complete handshake do not disturb it.
type StreamListener struct {
	streams  Streams
	sessions chan net.Conn
	failed   chan error // from Streams.Accept
	closing  chan struct{}
	once     sync.Once

	mu      sync.Mutex
	session net.Conn // the current one
	stream  Stream   // the stream of that session
}

// NewStreamListener returns a listener for sessions on streams, which it takes over.
func NewStreamListener(streams Streams) *StreamListener {
	l := &StreamListener{
		streams: streams, sessions: make(chan net.Conn), failed: make(chan error, 1), closing: make(chan struct{}),
	}
	go l.run()
	return l
}

func (l *StreamListener) run() {
	for {
		stream, err := l.streams.Accept()
		if err != nil {
			l.failed <- err
			return
		}
		go l.serve(stream)
	}
}

// serve scans a stream for handshakes, until the host closes it or a session on another stream
// replaces its own.
func (l *StreamListener) serve(stream Stream) {
	defer stream.Close()
	port := NewPortListener(streamPort{stream})
	for {
		session, err := port.Accept()
		if err != nil {
			return
		}
		l.replace(session, stream)
		select {
		case l.sessions <- session:
		case <-l.closing:
			session.Close()
			return
		}
	}
}

// replace makes session the current one. It closes the previous session and its stream, unless both
// are on the same stream.
func (l *StreamListener) replace(session net.Conn, stream Stream) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.session != nil && l.stream != stream {
		l.session.Close()
		l.stream.Close()
	}
	l.session, l.stream = session, stream
}

// Accept implements net.Listener. It returns when the client preface of a session has arrived.
func (l *StreamListener) Accept() (net.Conn, error) {
	select {
	case session := <-l.sessions:
		return session, nil
	case err := <-l.failed:
		return nil, err
	case <-l.closing:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. The current session stays open.
func (l *StreamListener) Close() error {
	l.once.Do(func() { close(l.closing) })
	return l.streams.Close()
}

// Addr implements net.Listener.
func (l *StreamListener) Addr() net.Addr { return addr("guest") }

// streamPort makes a Stream a Port. A closed stream stays closed, so ReadWait has no next host to
// wait for.
type streamPort struct{ Stream }

func (p streamPort) ReadWait(b []byte) (int, error) { return p.Read(b) }

// NetStreams returns the connections of a net.Listener as Streams.
func NetStreams(l net.Listener) Streams { return netStreams{l} }

type netStreams struct{ net.Listener }

func (s netStreams) Accept() (Stream, error) { return s.Listener.Accept() }
