package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"squib/agent/internal/identity"
	"squib/agent/internal/porttest"
	"squib/agent/internal/process"
	"squib/agent/internal/transport"
)

var reaper = process.NewReaper()

// TestMain starts the reaper, which takes the statuses of all children. Tests must not use os/exec.
func TestMain(m *testing.M) {
	go reaper.Run()
	os.Exit(m.Run())
}

// guest is a complete agent except for the boot, on a port without a device.
type guest struct {
	root string // of the accounts
	t    *testing.T
	port *porttest.Port
	off  chan time.Duration
	log  *bytes.Buffer

	server *Server
}

func newGuest(t *testing.T) *guest {
	g := &guest{t: t, port: porttest.New(t), off: make(chan time.Duration, 1), log: &bytes.Buffer{}}
	root := t.TempDir()
	g.root = root
	os.MkdirAll(root+"/etc", 0o755)
	os.WriteFile(root+"/etc/passwd", []byte(fmt.Sprintf("me:x:%d:%d::/:/bin/sh\n", os.Getuid(), os.Getgid())), 0o644)
	accounts := process.Accounts{Root: root}
	processes := process.NewManager(reaper, nil, accounts)
	s := New(processes, Config{Version: "1.2.3", Identity: identity.Guest{Root: root}, Accounts: accounts, PowerOff: func(d time.Duration) { g.off <- d }, Log: log.New(g.log, "", 0)})
	s.gate.open()
	g.server = s
	l := transport.NewPortListener(g.port)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		for _, p := range processes.List() {
			p.Kill()
		}
		l.Close()
		<-ended
	})
	return g
}

var nonces atomic.Int64

// session is a host's connection after its handshake.
type session struct {
	*http.Client
	t    *testing.T
	conn *detached
}

func (g *guest) connect() *session { return g.session(g.port.Connect()) }

// session performs the handshake on conn, skipping stale bytes of an earlier session.
func (g *guest) session(conn net.Conn) *session {
	g.t.Helper()
	porttest.Handshake(g.t, conn, porttest.Nonce(int(nonces.Add(1))))
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	own := &detached{Conn: conn, gone: make(chan struct{}), left: make(chan struct{})}
	transport := &http.Transport{
		Protocols:   &protocols,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return own, nil },
	}
	return &session{&http.Client{Transport: transport, Timeout: 20 * time.Second}, g.t, own}
}

// detached is a host's socket that can be taken from its client without an end of file.
type detached struct {
	net.Conn
	gone chan struct{} // closed by stealConn
	left chan struct{} // closed when the client has stopped reading
	once sync.Once
}

func (d *detached) Read(b []byte) (int, error) {
	n, err := d.Conn.Read(b)
	select {
	case <-d.gone:
		d.once.Do(func() { close(d.left) })
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (d *detached) Write(b []byte) (int, error) {
	select {
	case <-d.gone:
		return 0, net.ErrClosed
	default:
		return d.Conn.Write(b)
	}
}

func (d *detached) Close() error { return nil }

// stealConn takes the socket from a session's client.
func stealConn(t *testing.T, s *session) net.Conn {
	t.Helper()
	close(s.conn.gone)
	s.conn.Conn.SetReadDeadline(time.Unix(1, 0)) // stops the client's reader
	<-s.conn.left
	s.conn.Conn.SetReadDeadline(time.Time{})
	return s.conn.Conn
}

func (s *session) start(method, path, body string) *http.Response {
	s.t.Helper()
	request, err := http.NewRequest(method, "http://guest"+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	response, err := s.Do(request)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	return response
}

func (s *session) ask(method, path, body string) (int, map[string]any) {
	s.t.Helper()
	response := s.start(method, path, body)
	defer response.Body.Close()
	answer := map[string]any{}
	text, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	if len(text) > 0 {
		if err := json.Unmarshal(text, &answer); err != nil {
			s.t.Fatalf("%s: %v", text, err)
		}
	}
	return response.StatusCode, answer
}

func (s *session) refused(method, path, body string, status int, code string) {
	s.t.Helper()
	got, answer := s.ask(method, path, body)
	inner, _ := answer["error"].(map[string]any)
	if got != status || inner["code"] != code || inner["message"] == "" {
		s.t.Errorf("%s %s %.80s: got %d %v, want %d %s", method, path, body, got, answer, status, code)
	}
}

type frame struct {
	kind    byte
	offset  uint64
	payload string
}

func readFrame(r io.Reader) (f frame, err error) {
	var header [13]byte
	if _, err = io.ReadFull(r, header[:]); err != nil {
		return f, err
	}
	payload := make([]byte, binary.BigEndian.Uint32(header[1:]))
	_, err = io.ReadFull(r, payload)
	return frame{header[0], binary.BigEndian.Uint64(header[5:]), string(payload)}, err
}

// command is an exec request whose frames are read one by one.
type command struct {
	t       *testing.T
	body    io.ReadCloser
	r       *bufio.Reader
	ID      string `json:"id"`
	PID     int    `json:"pid"`
	begin   [3]int // first offsets of the streams
	streams [3]string
}

func (s *session) exec(request string) *command {
	s.t.Helper()
	return s.follow("POST", "/v1/exec", request)
}

// attach follows a session from the start of the kept output; query adds parameters.
func (s *session) attach(id, query string) *command {
	s.t.Helper()
	return s.follow("GET", "/v1/processes/"+id+"/output"+query, "")
}

func (s *session) follow(method, path, request string) *command {
	s.t.Helper()
	response := s.start(method, path, request)
	if response.StatusCode != 200 || response.Header.Get("Content-Type") != "application/vnd.squib.frames" {
		text, _ := io.ReadAll(response.Body)
		s.t.Fatalf("%s: %d %v %s", request, response.StatusCode, response.Header, text)
	}
	c := &command{t: s.t, body: response.Body, r: bufio.NewReader(response.Body), begin: [3]int{0, -1, -1}}
	first := c.next()
	if err := json.Unmarshal([]byte(first.payload), c); err != nil || first.kind != 0 || c.ID == "" || c.PID == 0 {
		s.t.Fatalf("first frame: %+v", first)
	}
	return c
}

func (c *command) next() frame {
	c.t.Helper()
	f, err := readFrame(c.r)
	if err != nil {
		c.t.Fatal(err)
	}
	if f.kind == 1 || f.kind == 2 {
		if c.begin[f.kind] < 0 {
			c.begin[f.kind] = int(f.offset)
		}
		if f.offset != uint64(c.begin[f.kind]+len(c.streams[f.kind])) || len(f.payload) == 0 || len(f.payload) > 65536 {
			c.t.Fatalf("frame of %d bytes at %d, have %d", len(f.payload), f.offset, c.begin[f.kind]+len(c.streams[f.kind]))
		}
		c.streams[f.kind] += f.payload
	}
	return f
}

// until reads frames until stdout ends with text.
func (c *command) until(text string) {
	c.t.Helper()
	for !strings.HasSuffix(c.streams[1], text) {
		if f := c.next(); f.kind == 3 {
			c.t.Fatalf("the command ended: %s, stdout %q, stderr %q", f.payload, c.streams[1], c.streams[2])
		}
	}
}

type exit struct {
	ExitCode   *int `json:"exit_code"`
	Signal     *int `json:"signal"`
	TimedOut   bool `json:"timed_out"`
	DurationMS *int `json:"duration_ms"`
}

// finish reads through the exit frame, which must be the last.
func (c *command) finish() (e exit) {
	c.t.Helper()
	for {
		if f := c.next(); f.kind == 3 {
			if err := json.Unmarshal([]byte(f.payload), &e); err != nil || e.DurationMS == nil || (e.ExitCode == nil) == (e.Signal == nil) {
				c.t.Fatalf("exit %s: %v", f.payload, err)
			}
			if rest, err := io.ReadAll(c.r); err != nil || len(rest) > 0 {
				c.t.Fatalf("after the exit frame: %q, %v", rest, err)
			}
			return e
		}
	}
}
