package server

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

func (s *session) describe(id string) map[string]any {
	s.t.Helper()
	status, answer := s.ask("GET", "/v1/processes/"+id, "")
	if status != 200 {
		s.t.Fatalf("%s: %d %v", id, status, answer)
	}
	return answer
}

func TestSessionIsDescribed(t *testing.T) {
	s := newGuest(t).connect()
	c := s.exec(`{"shell": "printf 12345; printf err >&2; read x; exit 3", "user": "me", "stdin": true, "background": true}`)
	for len(c.streams[1]) < 5 || len(c.streams[2]) < 3 {
		c.next()
	}
	got := s.describe(c.ID)
	for key, want := range map[string]string{
		"id": c.ID, "pid": strconv.Itoa(c.PID), "user": "me", "background": "true", "pty": "<nil>", "stdin": "true", "readers": "1",
		"stdout": "map[end:5 start:0]", "stderr": "map[end:3 start:0]", "exit": "<nil>",
	} {
		if fmt.Sprint(got[key]) != want {
			t.Errorf("%s: got %v, want %s", key, got[key], want)
		}
	}
	s.ask("POST", "/v1/processes/"+c.ID+"/stdin?close=1", "")
	c.finish()
	eventually(t, "its reader has left", func() bool { return s.describe(c.ID)["readers"] == 0.0 })
	if exit := s.describe(c.ID)["exit"].(map[string]any); exit["exit_code"] != 3.0 || exit["signal"] != nil || exit["timed_out"] != false {
		t.Errorf("got %v", exit)
	}
	s.refused("POST", "/v1/processes/"+c.ID+"/stdin", "x", 409, "stdin_closed")
	s.refused("POST", "/v1/processes/"+c.ID+"/signal", `{"signal": 15}`, 404, "no_such_process")
	if status, _ := s.ask("DELETE", "/v1/processes/"+c.ID, ""); status != 204 {
		t.Errorf("delete: %d", status)
	}
	s.refused("GET", "/v1/processes/"+c.ID, "", 404, "no_such_process")
	s.refused("GET", "/v1/processes/"+c.ID+"/output", "", 404, "no_such_process")
}

// A background command continues without its request and its session, and the next host finds it.
func TestBackgroundOutlivesTheSession(t *testing.T) {
	g := newGuest(t)
	s := g.connect()
	c := s.exec(`{"shell": "printf abc; read x; printf \"$x\"; exit 4", "user": "me", "stdin": true, "background": true}`)
	f := s.exec(`{"argv": ["sleep", "1000"], "user": "me"}`)
	c.until("abc")
	c.body.Close()
	s.conn.Conn.Close()
	eventually(t, "the command in the foreground is killed", func() bool { return !alive(f.PID) })

	s = g.connect()
	eventually(t, "only the other one is left", func() bool {
		_, answer := s.ask("GET", "/v1/processes", "")
		return len(answer["processes"].([]any)) == 1
	})
	again, rest, none := s.attach(c.ID, ""), s.attach(c.ID, "?stdout=2&stderr=9"), s.attach(c.ID, "?none=1")
	if again.PID != c.PID {
		t.Errorf("pid %d, want %d", again.PID, c.PID)
	}
	s.ask("POST", "/v1/processes/"+c.ID+"/stdin", "def\n")
	for _, reader := range []*command{again, rest, none, s.attach(c.ID, "")} {
		if e := reader.finish(); *e.ExitCode != 4 {
			t.Errorf("got %+v", e)
		}
	}
	if again.streams[1] != "abcdef" || rest.streams[1] != "cdef" || rest.begin[1] != 2 || none.streams[1] != "" {
		t.Errorf("got %q, %q, %q", again.streams, rest.streams, none.streams)
	}
}

// With two readers, the slower one sets the pace. A reader without output blocks nothing. When the
// slow reader leaves, the command continues.
func TestReadersOfASession(t *testing.T) {
	s := newGuest(t).connect()
	const size = 8 << 20
	fast := s.exec(fmt.Sprintf(`{"shell": "read x; exec head -c %d /dev/zero", "user": "me", "stdin": true, "background": true}`, size))
	slow, none := s.attach(fast.ID, ""), s.attach(fast.ID, "?none=1")
	s.ask("POST", "/v1/processes/"+fast.ID+"/stdin?close=1", "\n")
	eventually(t, "it stands still", func() bool {
		stat, _ := os.ReadFile("/proc/" + strconv.Itoa(fast.PID) + "/stat")
		return strings.Contains(string(stat), "(head) S ")
	})
	if end := s.describe(fast.ID)["stdout"].(map[string]any)["end"].(float64); end >= size {
		t.Errorf("%v bytes were read from it", end)
	}
	slow.body.Close()
	if fast.finish(); len(fast.streams[1]) != size {
		t.Errorf("%d bytes", len(fast.streams[1]))
	}
	none.finish()
}

func TestLeavingAReaderDoesNothing(t *testing.T) {
	s := newGuest(t).connect()
	c := s.exec(`{"shell": "read x; echo got $x", "user": "me", "stdin": true}`)
	s.attach(c.ID, "").body.Close()
	s.attach(c.ID, "?none=1").body.Close()
	eventually(t, "they have left", func() bool { return s.describe(c.ID)["readers"] == 1.0 })
	s.ask("POST", "/v1/processes/"+c.ID+"/stdin", "it\n")
	if c.finish(); c.streams[1] != "got it\n" {
		t.Errorf("got %q", c.streams[1])
	}
}

func TestTerminalSession(t *testing.T) {
	s := newGuest(t).connect()
	c := s.exec(`{"shell": "while read line; do eval \"$line\"; done", "user": "me", "pty": {"rows": 30, "cols": 100}, "background": true}`)
	path := "/v1/processes/" + c.ID
	s.ask("POST", path+"/stdin", "stty size\n")
	c.until("30 100\r\n")
	for _, size := range []string{"50 132", "50 132"} {
		rows, cols, _ := strings.Cut(size, " ")
		if status, _ := s.ask("POST", path+"/resize", `{"rows": `+rows+`, "cols": `+cols+`}`); status != 204 {
			t.Errorf("resize: %d", status)
		}
	}
	s.ask("POST", path+"/stdin", "stty size\n")
	c.until("50 132\r\n")
	if pty := s.describe(c.ID)["pty"]; fmt.Sprint(pty) != "map[cols:132 rows:50]" {
		t.Errorf("got %v", pty)
	}
	for _, body := range []string{`{}`, `{"rows": 1}`, `{"rows": 0, "cols": 1}`, `{"rows": 65536, "cols": 1}`, `{"rows": "1", "cols": 1}`} {
		s.refused("POST", path+"/resize", body, 400, "bad_request")
	}
	c.body.Close() // the connection is lost
	eventually(t, "nobody follows", func() bool { return s.describe(c.ID)["readers"] == 0.0 })
	again := s.attach(c.ID, fmt.Sprintf("?stdout=%d", len(c.streams[1])))
	if status, answer := s.ask("POST", path+"/stdin?close=1", "echo again\n"); status != 200 || answer["written"] != 11.0 {
		t.Errorf("stdin: %d %v", status, answer)
	}
	if e := again.finish(); *e.ExitCode != 0 || again.begin[1] != len(c.streams[1]) || !strings.Contains(again.streams[1], "\nagain\r\n") {
		t.Errorf("got %+v, %d, %q", e, again.begin[1], again.streams)
	}
	plain := s.exec(`{"argv": ["sleep", "1000"], "user": "me"}`)
	s.refused("POST", "/v1/processes/"+plain.ID+"/resize", `{"rows": 1, "cols": 1}`, 409, "no_terminal")
}

func TestBadSessionRequests(t *testing.T) {
	s := newGuest(t).connect()
	for _, body := range []string{
		`{"argv": ["true"], "login": true}`, `{"shell": "true", "login": true}`, `{"login": false}`, `{"argv": ["true"], "pty": {}}`, `{"argv": ["true"], "pty": {"rows": 24}}`,
		`{"argv": ["true"], "pty": {"rows": 24, "cols": 65536}}`, `{"argv": ["true"], "pty": [24, 80]}`, `{"argv": ["true"], "background": 1}`,
	} {
		s.refused("POST", "/v1/exec", body, 400, "bad_request")
	}
	c := s.exec(`{"argv": ["sleep", "1000"], "user": "me"}`)
	for _, query := range []string{"stdout=-1", "stderr=x", "stdout=", "stdout=99999999999999999999"} {
		s.refused("GET", "/v1/processes/"+c.ID+"/output?"+query, "", 400, "bad_request")
	}
}
