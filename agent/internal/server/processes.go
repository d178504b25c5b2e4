package server

import (
	"encoding/json"
	"net/http"
	"strconv"

	"squib/agent/internal/process"
)

// description describes a process session.
type description struct {
	ID            string          `json:"id"`
	PID           int             `json:"pid"`
	Argv          []text          `json:"argv"`
	User          text            `json:"user"`
	StartedUnixMS int64           `json:"started_unix_ms"`
	Background    bool            `json:"background"`
	PTY           *sessionSize    `json:"pty"`
	Stdin         bool            `json:"stdin"`
	Readers       int             `json:"readers"`
	Stdout        offsets         `json:"stdout"`
	Stderr        offsets         `json:"stderr"`
	Exit          json.RawMessage `json:"exit"` // null while the command runs
}

type sessionSize struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

type offsets struct {
	Start int64 `json:"start"`
	End   int64 `json:"end"`
}

func describe(p *process.Process) description {
	s := description{
		ID: p.ID, PID: p.PID, Argv: []text{}, User: text(p.User), StartedUnixMS: p.Started.UnixMilli(), Background: p.Background,
		Stdin: p.Stdin, Readers: p.Readers(),
	}
	for _, arg := range p.Argv {
		s.Argv = append(s.Argv, text(arg))
	}
	if size := p.TerminalSize(); size != nil {
		s.PTY = &sessionSize{size.Rows, size.Cols}
	}
	s.Stdout.Start, s.Stdout.End = p.Log.Offsets(process.Stdout)
	s.Stderr.Start, s.Stderr.End = p.Log.Offsets(process.Stderr)
	select {
	case <-p.Done():
		s.Exit = exitPayload(p.Status())
	default:
	}
	return s
}

func (s *Server) list(w http.ResponseWriter, r *http.Request) error {
	sessions := []description{}
	for _, p := range s.processes.List() {
		sessions = append(sessions, describe(p))
	}
	return writeJSON(w, map[string]any{"processes": sessions})
}

func (s *Server) session(w http.ResponseWriter, r *http.Request) error {
	p, err := s.processes.Get(r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, describe(p))
}

// output attaches to a session. Leaving it does not affect the command.
func (s *Server) output(w http.ResponseWriter, r *http.Request) error {
	p, err := s.processes.Get(r.PathValue("id"))
	if err != nil {
		return err
	}
	query := r.URL.Query()
	var from [2]int64
	for i, name := range []string{"stdout", "stderr"} {
		if !query.Has(name) {
			continue
		}
		if from[i], err = strconv.ParseInt(query.Get(name), 10, 64); err != nil || from[i] < 0 {
			return badRequest(name + " must be an offset of 0 or more")
		}
	}
	var reader *process.Reader
	if query.Get("none") == "1" {
		defer p.Watch()()
	} else {
		if reader, err = p.Attach(from[0], from[1]); err != nil {
			return err
		}
		defer reader.Close()
	}
	newFrames(w).follow(p, reader, r.Context().Done()) // the only error is that the host has left
	return nil
}

func (s *Server) stdin(w http.ResponseWriter, r *http.Request) error {
	p, err := s.processes.Get(r.PathValue("id"))
	if err != nil {
		return err
	}
	written, err := p.WriteStdin(r.Context(), r.Body, r.URL.Query().Get("close") == "1")
	if err != nil {
		return err
	}
	return writeJSON(w, map[string]int64{"written": written})
}

func (s *Server) resize(w http.ResponseWriter, r *http.Request) error {
	p, err := s.processes.Get(r.PathValue("id"))
	if err != nil {
		return err
	}
	var request terminalSize
	if err := decode(w, r, &request); err != nil {
		return err
	}
	size, err := request.size()
	if err != nil {
		return err
	}
	if err := p.Resize(size); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) signal(w http.ResponseWriter, r *http.Request) error {
	p, err := s.processes.Get(r.PathValue("id"))
	if err != nil {
		return err
	}
	var request struct {
		Signal int `json:"signal"`
	}
	if err := decode(w, r, &request); err != nil {
		return err
	}
	if request.Signal < 1 || request.Signal > 64 {
		return badRequest("signal must be 1 to 64")
	}
	if err := p.Signal(request.Signal); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) kill(w http.ResponseWriter, r *http.Request) error {
	p, err := s.processes.Get(r.PathValue("id"))
	if err != nil {
		return err
	}
	if err := p.KillAndWait(r.Context()); err != nil {
		return err
	}
	s.processes.Forget(p)
	w.WriteHeader(http.StatusNoContent)
	return nil
}
