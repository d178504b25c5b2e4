package server

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"squib/agent/internal/process"
)

// idleAfter is the longest silence in a streamed response.
const idleAfter = 15 * time.Second

// errCancelled reports that the host has cancelled a request.
var errCancelled = errors.New("the host has cancelled the request")

type execRequest struct {
	Argv       []text        `json:"argv"`
	Shell      *text         `json:"shell"`
	Login      bool          `json:"login"`
	Env        textMap       `json:"env"`
	Cwd        text          `json:"cwd"`
	User       text          `json:"user"`
	Sudo       bool          `json:"sudo"`
	Stdin      bool          `json:"stdin"`
	TimeoutMS  *int64        `json:"timeout_ms"`
	Background bool          `json:"background"`
	PTY        *terminalSize `json:"pty"`

	RestoreSignal *int `json:"restore_signal"`
}

func (q execRequest) spec() (process.Spec, error) {
	spec := process.Spec{
		Login: q.Login, Env: q.Env, Cwd: string(q.Cwd), User: string(q.User), Sudo: q.Sudo, Stdin: q.Stdin, Background: q.Background,
	}
	given := 0
	for _, is := range []bool{len(q.Argv) > 0, q.Shell != nil, q.Login} {
		if is {
			given++
		}
	}
	if given != 1 {
		return spec, badRequest("give exactly one of argv (not empty), shell and login")
	}
	for _, arg := range q.Argv {
		spec.Argv = append(spec.Argv, string(arg))
	}
	if q.Shell != nil {
		shell := string(*q.Shell)
		spec.Shell = &shell
	}
	if q.TimeoutMS != nil {
		const longest = int64(1<<63-1) / int64(time.Millisecond)
		if *q.TimeoutMS <= 0 {
			return spec, badRequest("timeout_ms must be positive")
		}
		spec.Timeout = time.Duration(min(*q.TimeoutMS, longest)) * time.Millisecond
	}
	if q.RestoreSignal != nil {
		if *q.RestoreSignal < 1 || *q.RestoreSignal > 64 {
			return spec, badRequest("restore_signal must be 1 to 64")
		}
		spec.RestoreSignal = *q.RestoreSignal
	}
	if q.PTY != nil {
		size, err := q.PTY.size()
		if err != nil {
			return spec, err
		}
		spec.Terminal = &size
	}
	return spec, nil
}

// terminalSize is the size of a terminal in a request.
type terminalSize struct {
	Rows int64 `json:"rows"`
	Cols int64 `json:"cols"`
}

func (s terminalSize) size() (process.Size, error) {
	const most = 65535
	if s.Rows < 1 || s.Rows > most || s.Cols < 1 || s.Cols > most {
		return process.Size{}, badRequest("rows and cols of a terminal must be 1 to 65535")
	}
	return process.Size{Rows: uint16(s.Rows), Cols: uint16(s.Cols)}, nil
}

// exec runs a command and streams its output. When the request ends, for any reason, a foreground
// command is killed.
func (s *Server) exec(w http.ResponseWriter, r *http.Request) error {
	var request execRequest
	if err := decode(w, r, &request); err != nil {
		return err
	}
	spec, err := request.spec()
	if err != nil {
		return err
	}
	p, reader, err := s.processes.Start(spec)
	if err != nil {
		return err
	}
	err = newFrames(w).follow(p, reader, r.Context().Done())
	if !p.Background && err != nil {
		p.Kill()
	}
	reader.Close()
	if !p.Background {
		<-p.Done()
		if err != nil {
			s.processes.Forget(p) // all its processes were killed
		} else {
			s.processes.Finish(p)
		}
	}
	return nil
}

func startedPayload(p *process.Process) []byte {
	b := append(appendQuoted([]byte(`{"id":`), p.ID), `,"pid":`...)
	return append(strconv.AppendInt(b, int64(p.PID), 10), '}')
}

func exitPayload(status process.Status) []byte {
	number := func(b []byte, n int) []byte {
		if n < 0 {
			return append(b, "null"...)
		}
		return strconv.AppendInt(b, int64(n), 10)
	}
	b := number([]byte(`{"exit_code":`), status.ExitCode)
	b = number(append(b, `,"signal":`...), status.Signal)
	b = strconv.AppendBool(append(b, `,"timed_out":`...), status.TimedOut)
	b = strconv.AppendInt(append(b, `,"duration_ms":`...), status.Duration.Milliseconds(), 10)
	if status.OOMKilled {
		b = append(b, `,"oom_killed":true`...)
	}
	return append(b, '}')
}
