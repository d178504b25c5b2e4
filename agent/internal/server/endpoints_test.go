package server

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"squib/agent/internal/identity"
	"squib/agent/internal/porttest"
	"squib/agent/internal/transport"
)

func alive(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}

func TestHello(t *testing.T) {
	status, hello := newGuest(t).connect().ask("GET", "/v1/hello", "")
	if status != 200 || hello["protocol"] != 1.0 || hello["agent_version"] != "1.2.3" || len(hello["boot_id"].(string)) != 36 || hello["kernel"] == "" || hello["uptime_ms"].(float64) <= 0 {
		t.Errorf("got %d %v", status, hello)
	}
}

func TestExec(t *testing.T) {
	s := newGuest(t).connect()
	c := s.exec(`{"shell": "printf 'o\\377'; printf err >&2; exit 3", "user": "me"}`)
	if e := c.finish(); *e.ExitCode != 3 || e.TimedOut || c.streams[1] != "o\xff" || c.streams[2] != "err" {
		t.Errorf("got %+v, %q", e, c.streams)
	}
	c = s.exec(`{"argv": ["printf", "%s", "\udcff\ud83d\ude00"], "user": "me"}`)
	if c.finish(); c.streams[1] != "\xff😀" {
		t.Errorf("got %q", c.streams)
	}
}

func TestSmallOutputArrivesAtOnce(t *testing.T) {
	s := newGuest(t).connect()
	c := s.exec(`{"shell": "while read line; do echo \"got $line\"; done", "user": "me", "stdin": true}`)
	for i := range 20 {
		s.ask("POST", "/v1/processes/"+c.ID+"/stdin", fmt.Sprintf("%d\n", i))
		c.until(fmt.Sprintf("got %d\n", i)) // the command waits for the next line, so no other output pushes this one out
	}
	if status, answer := s.ask("POST", "/v1/processes/"+c.ID+"/stdin?close=1", ""); status != 200 || answer["written"] != 0.0 {
		t.Errorf("got %d %v", status, answer)
	}
	if e := c.finish(); *e.ExitCode != 0 {
		t.Errorf("got %+v", e)
	}
	s.refused("POST", "/v1/processes/"+c.ID+"/stdin", "x", 404, "no_such_process")
}

func TestBulkBothWays(t *testing.T) {
	s := newGuest(t).connect()
	c := s.exec(`{"argv": ["cat"], "user": "me", "stdin": true}`)
	data := strings.Repeat("0123456789abcdef", 1<<19) // 8 MiB
	go s.ask("POST", "/v1/processes/"+c.ID+"/stdin?close=1", data)
	if c.finish(); c.streams[1] != data {
		t.Errorf("%d bytes came back", len(c.streams[1]))
	}
}

func TestErrors(t *testing.T) {
	s := newGuest(t).connect()
	for request, want := range map[string]struct {
		status int
		code   string
	}{
		`{"argv": ["no-such-program"], "user": "me"}`:    {422, "command_not_found"},
		`{"argv": ["/etc/passwd"], "user": "me"}`:        {422, "not_executable"},
		`{"argv": ["ls"], "cwd": "/none", "user": "me"}`: {422, "bad_cwd"},
		`{"argv": ["ls"], "user": "nobody-here"}`:        {422, "no_such_user"},
		`{"argv": ["ls"], "env": {"=": ""}}`:             {400, "bad_request"},
		`{"argv": "ls"}`:                                 {400, "bad_request"},
		`{"argv": ["ls"`:                                 {400, "bad_request"},
		``:                                               {400, "bad_request"},
	} {
		s.refused("POST", "/v1/exec", request, want.status, want.code)
	}
	s.refused("POST", "/v1/exec", `{"argv": ["`+strings.Repeat("x", maxBody)+`"]}`, 400, "bad_request")
	s.refused("GET", "/v1/nothing", "", 400, "bad_request")
	s.refused("GET", "/v1/exec", "", 400, "bad_request")
	for method, path := range map[string]string{"POST": "/v1/processes/p77/signal", "DELETE": "/v1/processes/p77"} {
		s.refused(method, path, `{"signal": 15}`, 404, "no_such_process")
	}
	c := s.exec(`{"argv": ["sleep", "100"], "user": "me"}`)
	s.refused("POST", "/v1/processes/"+c.ID+"/stdin", "x", 409, "stdin_closed")
	for _, body := range []string{`{"signal": 0}`, `{"signal": 65}`, `{"signal": "TERM"}`, `{}`} {
		s.refused("POST", "/v1/processes/"+c.ID+"/signal", body, 400, "bad_request")
	}
}

func TestProcessesSignalAndDelete(t *testing.T) {
	s := newGuest(t).connect()
	a := s.exec(`{"argv": ["sleep", "1000"], "user": "me", "env": {"X": "y"}}`)
	b := s.exec(`{"shell": "sleep 1000 & echo $!; wait; : \udcff", "user": "me"}`)
	b.until("\n")
	status, answer := s.ask("GET", "/v1/processes", "")
	list := answer["processes"].([]any)
	if status != 200 || len(list) != 2 {
		t.Fatalf("got %d %v", status, answer)
	}
	first := list[0].(map[string]any)
	if first["id"] != a.ID || first["pid"] != float64(a.PID) || fmt.Sprint(first["argv"]) != "[sleep 1000]" || first["user"] != "me" || first["started_unix_ms"].(float64) < 1.7e12 {
		t.Errorf("got %v", first)
	}
	if status, _ := s.ask("POST", "/v1/processes/"+a.ID+"/signal", `{"signal": 15}`); status != 204 {
		t.Errorf("signal: %d", status)
	}
	if e := a.finish(); e.Signal == nil || *e.Signal != 15 {
		t.Errorf("got %+v", e)
	}
	if status, _ := s.ask("DELETE", "/v1/processes/"+b.ID, ""); status != 204 {
		t.Errorf("delete: %d", status)
	}
	child, _ := strconv.Atoi(strings.TrimSpace(b.streams[1]))
	if alive(b.PID) || alive(child) {
		t.Error("alive after 204")
	}
	if e := b.finish(); *e.Signal != 9 || e.TimedOut {
		t.Errorf("got %+v", e)
	}
}

func TestTimeout(t *testing.T) {
	c := newGuest(t).connect().exec(`{"shell": "sleep 1000 & echo $!; wait", "user": "me", "timeout_ms": 80}`)
	if e := c.finish(); *e.Signal != 9 || !e.TimedOut || *e.DurationMS < 80 {
		t.Errorf("got %+v", e)
	}
}

// A host that does not read blocks the command and nothing else. A kill is served, and the response
// ends once it is read.
func TestKillWhileTheHostDoesNotRead(t *testing.T) {
	s := newGuest(t).connect()
	c := s.exec(`{"argv": ["yes"], "user": "me"}`)
	eventually(t, "yes blocks", func() bool {
		stat, _ := os.ReadFile("/proc/" + strconv.Itoa(c.PID) + "/stat")
		return strings.Contains(string(stat), ") S ")
	})
	if status, _ := s.ask("DELETE", "/v1/processes/"+c.ID, ""); status != 204 || alive(c.PID) {
		t.Errorf("delete: %d", status)
	}
	if e := c.finish(); *e.Signal != 9 {
		t.Errorf("got %+v", e)
	}
}

func TestCancelledRequestKills(t *testing.T) {
	s := newGuest(t).connect()
	c := s.exec(`{"argv": ["sleep", "1000"], "user": "me"}`)
	c.body.Close() // RST_STREAM
	eventually(t, "it is killed", func() bool { return !alive(c.PID) })
	if status, _ := s.ask("GET", "/v1/hello", ""); status != 200 {
		t.Errorf("the session: %d", status)
	}
}

func TestEndOfSessionKills(t *testing.T) {
	g := newGuest(t)
	s := g.connect()
	quiet, loud := s.exec(`{"argv": ["sleep", "1000"], "user": "me"}`), s.exec(`{"argv": ["yes"], "user": "me"}`)
	s.conn.Conn.Close()
	eventually(t, "they are killed", func() bool { return !alive(quiet.PID) && !alive(loud.PID) })
	next := g.connect()
	eventually(t, "they are forgotten", func() bool { // the end of the old session's requests
		status, answer := next.ask("GET", "/v1/processes", "")
		return status == 200 && len(answer["processes"].([]any)) == 0
	})
}

// A paused VM was cloned: another host connects, and the guest has not seen an end of file.
func TestFlushReplacesALiveSession(t *testing.T) {
	g := newGuest(t)
	s := g.connect()
	c := s.exec(`{"argv": ["sleep", "1000"], "user": "me"}`)
	host := stealConn(t, s)
	for _, before := range []string{"", "\x03\x00", "\x03\x00\x00\x00\x00\x00\x00\x00\x01half of a frame"} {
		porttest.Send(t, host, before+strings.Repeat("\xff", transport.MaxFrame+9))
		start := time.Now()
		s = g.session(host)
		if took := time.Since(start); took > 500*time.Millisecond {
			t.Errorf("answered after %v", took)
		}
		if status, _ := s.ask("GET", "/v1/hello", ""); status != 200 {
			t.Errorf("hello: %d", status)
		}
		eventually(t, "the old session's command is killed", func() bool { return !alive(c.PID) })
		c = s.exec(`{"argv": ["sleep", "1000"], "user": "me"}`)
		host = stealConn(t, s)
	}
}

// A broken HTTP/2 session does not delay the next one.
func TestProtocolErrorReturnsToScanning(t *testing.T) {
	g := newGuest(t)
	s := g.connect()
	s.ask("GET", "/v1/hello", "")
	host := stealConn(t, s)
	porttest.Send(t, host, "\x00\x00\x01\x00\x00\x00\x00\x00\x00x") // DATA on stream 0
	if status, _ := g.session(host).ask("GET", "/v1/hello", ""); status != 200 {
		t.Errorf("hello: %d", status)
	}
}

func TestManyCommandsAtOnce(t *testing.T) {
	s := newGuest(t).connect()
	var all sync.WaitGroup
	for i := range 40 {
		all.Add(1)
		go func() {
			defer all.Done()
			c := s.exec(fmt.Sprintf(`{"shell": "echo %d; exit %d", "user": "me"}`, i, i))
			if e := c.finish(); *e.ExitCode != i || c.streams[1] != fmt.Sprintln(i) {
				t.Errorf("%d: got %+v, %q", i, e, c.streams[1])
			}
		}()
	}
	all.Wait()
}

// Commands that do not read their stdin do not block other requests by occupying the session's
// receive window.
func TestStalledStdinLeavesTheSessionUsable(t *testing.T) {
	s := newGuest(t).connect()
	var stalled []*command
	for range 8 {
		c := s.exec(`{"argv": ["sleep", "1000"], "user": "me", "stdin": true}`)
		stalled = append(stalled, c)
		go func() {
			request, _ := http.NewRequest("POST", "http://guest/v1/processes/"+c.ID+"/stdin", strings.NewReader(strings.Repeat("x", 8<<20)))
			if response, err := s.Do(request); err == nil {
				response.Body.Close()
			}
		}()
	}
	c := s.exec(`{"shell": ": ` + strings.Repeat("x", 100_000) + `; echo fine", "user": "me"}`)
	if c.finish(); c.streams[1] != "fine\n" {
		t.Errorf("got %q", c.streams[1])
	}
	for _, c := range stalled {
		s.ask("DELETE", "/v1/processes/"+c.ID, "")
	}
}

func TestSetupChecksBeforeItChanges(t *testing.T) {
	s := newGuest(t).connect()
	for _, body := range []string{`{"hostname": "a b"}`, `{"hostname": ""}`, `{"hostname": "a\nb"}`, `{"machine_id": "short"}`, `{"boot_id": "0f0f"}`, `{"entropy": "!"}`, `{"entropy": "AAAA"}`,
		`{"env": {"a=b": ""}}`, `{"env": []}`, `{"time_unix_ms": "now"}`, `[]`} {
		s.refused("POST", "/v1/setup", body, 400, "bad_request")
	}
	s.refused("POST", "/v1/setup", `{"env": {"LEAKED": "1"}, "machine_id": "bad"}`, 400, "bad_request")
	if status, _ := s.ask("POST", "/v1/setup", `{"env": {"KEY": "v\udcff"}, "machine_id": "0123456789abcdef0123456789abcdef"}`); status != 204 {
		t.Errorf("got %d", status)
	}
	c := s.exec(`{"shell": "echo \"$KEY$LEAKED\"", "user": "me"}`)
	if c.finish(); c.streams[1] != "v\xff\n" {
		t.Errorf("got %q", c.streams[1])
	}
	if status, _ := s.ask("POST", "/v1/setup", `{"env": {}}`); status != 204 {
		t.Errorf("got %d", status)
	}
	c = s.exec(`{"shell": "echo \"${KEY-none}\"", "user": "me"}`)
	if c.finish(); c.streams[1] != "none\n" {
		t.Errorf("got %q", c.streams[1])
	}
}

func TestAGuestWithoutEntropyServesNothing(t *testing.T) {
	g := newGuest(t)
	g.server.gate.isOpen = false
	s := g.connect()
	refused := func() {
		t.Helper()
		s.refused("POST", "/v1/exec", `{"argv": ["true"], "user": "me"}`, 503, "not_set_up")
		s.refused("GET", "/v1/processes", "", 503, "not_set_up")
		s.refused("PUT", "/v1/files?path=/tmp/never", "x", 503, "not_set_up")
	}
	refused()
	if status, _ := s.ask("POST", "/v1/setup", `{"env": {"A": "1"}}`); status != 204 {
		t.Errorf("got %d", status)
	}
	refused()
	g.server.config.Identity = dry{}
	if status, _ := s.ask("POST", "/v1/setup", `{"entropy": "AAAA"}`); status != 400 {
		t.Errorf("got %d", status)
	}
	refused()
	seed := base64.StdEncoding.EncodeToString(make([]byte, 32))
	s.refused("POST", "/v1/setup", `{"entropy": "`+seed+`"}`, 500, "internal")
	refused()
	g.server.config.Identity = generous{}
	if status, _ := s.ask("POST", "/v1/setup", `{"entropy": "`+seed+`"}`); status != 204 {
		t.Errorf("got %d", status)
	}
	c := s.exec(`{"shell": "echo $A", "user": "me"}`)
	if c.finish(); c.streams[1] != "1\n" {
		t.Errorf("got %q", c.streams[1])
	}
}

func TestAFrozenGuestServesWhenItHasEntropyAgain(t *testing.T) {
	g := newGuest(t)
	g.server.config.Identity = generous{}
	s := g.connect()
	for range 2 { // idempotent
		if status, _ := s.ask("POST", "/v1/freeze", "{}"); status != 204 {
			t.Fatalf("got %d", status)
		}
	}
	served := make(chan int, 1)
	go func() {
		status, _ := s.ask("GET", "/v1/processes", "")
		served <- status
	}()
	if status, body := s.ask("GET", "/v1/hello", ""); status != 200 || body["set_up"] != false {
		t.Errorf("got %d, %s", status, body)
	}
	if status, _ := s.ask("POST", "/v1/setup", `{"time_unix_ms": 1, "hostname": "-"}`); status != 400 {
		t.Errorf("got %d", status)
	}
	select {
	case status := <-served:
		t.Fatalf("served a frozen guest: %d", status)
	default:
	}
	seed := base64.StdEncoding.EncodeToString(make([]byte, 32))
	if status, body := s.ask("POST", "/v1/setup", `{"entropy": "`+seed+`"}`); status != 204 {
		t.Fatalf("got %d, %s", status, body)
	}
	if status := <-served; status != 200 {
		t.Errorf("got %d", status)
	}
	c := s.exec(`{"shell": "echo a", "user": "me"}`)
	if c.finish(); c.streams[1] != "a\n" {
		t.Errorf("got %q", c.streams[1])
	}
}

func TestAGuestIsNotFrozenIfItsCommandsCannotBe(t *testing.T) {
	g := newGuest(t) // without cgroups
	s := g.connect()
	c := s.exec(`{"argv": ["cat"], "stdin": true, "user": "me"}`)
	s.refused("POST", "/v1/freeze", "{}", 500, "internal")
	if status, _ := s.ask("GET", "/v1/processes", ""); status != 200 {
		t.Errorf("got %d", status)
	}
	s.ask("POST", "/v1/processes/"+c.ID+"/stdin?close=1", "")
	c.finish()
}

// dry cannot reseed its generator, and generous accepts any seed.
type (
	dry      struct{ identity.Guest }
	generous struct{ identity.Guest }
)

func (dry) AddEntropy([]byte) error      { return errors.New("no entropy") }
func (generous) AddEntropy([]byte) error { return nil }

func TestPowerOff(t *testing.T) {
	g := newGuest(t)
	s := g.connect()
	s.refused("POST", "/v1/poweroff", `{"grace_ms": -1}`, 400, "bad_request")
	if status, _ := s.ask("POST", "/v1/poweroff", `{"grace_ms": 250}`); status != 202 {
		t.Errorf("got %d", status)
	}
	if grace := <-g.off; grace != 250*time.Millisecond {
		t.Errorf("got %v", grace)
	}
	s.refused("POST", "/v1/exec", `{"argv": ["true"], "user": "me"}`, 503, "powering_off")
}
