package server

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"time"

	"squib/agent/internal/process"
)

// idleAfter is how long an answer may be silent.
const idleAfter = 15 * time.Second

type execRequest struct {
	Argv      []text  `json:"argv"`
	Shell     *text   `json:"shell"`
	Env       textMap `json:"env"`
	Cwd       text    `json:"cwd"`
	User      text    `json:"user"`
	Stdin     bool    `json:"stdin"`
	TimeoutMS *int64  `json:"timeout_ms"`
}

func (q execRequest) spec() (process.Spec, error) {
	spec := process.Spec{Env: q.Env, Cwd: string(q.Cwd), User: string(q.User), Stdin: q.Stdin}
	if (len(q.Argv) == 0) == (q.Shell == nil) {
		return spec, badRequest("exactly one of argv (not empty) and shell must be given")
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
	return spec, nil
}

// exec runs a command and streams it. The end of the request, for whatever reason, is the end of the command; the end of the command
// is the end of its first process, whoever still holds its pipes.
func (s *Server) exec(w http.ResponseWriter, r *http.Request) error {
	var request execRequest
	if err := decode(w, r, &request); err != nil {
		return err
	}
	spec, err := request.spec()
	if err != nil {
		return err
	}
	p, err := s.processes.Start(spec)
	if err != nil {
		return err
	}
	defer p.Release()
	defer context.AfterFunc(r.Context(), p.Kill)()

	out := newFrames(w)
	started := append(appendQuoted([]byte(`{"id":`), p.ID), `,"pid":`...)
	if out.send(kindStarted, append(strconv.AppendInt(started, int64(p.PID), 10), '}')) != nil {
		p.Kill()
	}
	var copies sync.WaitGroup
	for kind, output := range map[byte]*process.Output{kindStdout: p.Stdout, kindStderr: p.Stderr} {
		copies.Add(1)
		go func() {
			defer copies.Done()
			if out.copy(kind, output) != nil {
				p.Kill()
			}
		}()
	}
	idle := time.NewTimer(idleAfter)
	defer idle.Stop()
	for running := true; running; {
		select {
		case <-p.Done():
			running = false
		case <-idle.C:
			idle.Reset(out.idle(idleAfter))
		}
	}
	copies.Wait()
	out.send(kindExit, exitPayload(p.Status()))
	return nil
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
	return append(b, '}')
}
