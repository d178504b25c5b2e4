package server

import (
	"net/http"

	"squib/agent/internal/process"
)

func (s *Server) list(w http.ResponseWriter, r *http.Request) error {
	type entry struct {
		ID            string `json:"id"`
		PID           int    `json:"pid"`
		Argv          []text `json:"argv"`
		User          text   `json:"user"`
		StartedUnixMS int64  `json:"started_unix_ms"`
	}
	entries := []entry{}
	for _, p := range s.processes.List() {
		e := entry{ID: p.ID, PID: p.PID, User: text(p.User), StartedUnixMS: p.Started.UnixMilli()}
		for _, arg := range p.Argv {
			e.Argv = append(e.Argv, text(arg))
		}
		entries = append(entries, e)
	}
	return answer(w, map[string]any{"processes": entries})
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
	return answer(w, map[string]int64{"written": written})
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
	var p *process.Process
	p, err := s.processes.Get(r.PathValue("id"))
	if err != nil {
		return err
	}
	if err := p.KillAndWait(r.Context()); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
