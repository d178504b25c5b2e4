package server

import (
	"net/http"

	"squib/agent/internal/files"
)

func (s *Server) watchFiles(w http.ResponseWriter, r *http.Request) error {
	q := queryOf(r)
	actor, path := s.target(q)
	recursive := q.flag("recursive", false)
	if q.err != nil {
		return q.err
	}
	var watcher *files.Watcher
	err := actor.do(func() (err error) { watcher, err = files.Watch(path, recursive); return err })
	if err != nil {
		return err
	}
	defer watcher.Close()
	w.Header().Set("Content-Type", ndjson)
	flusher := http.NewResponseController(w)
	send := func(lines []byte) error {
		if _, err := w.Write(lines); err != nil {
			return err
		}
		return flusher.Flush()
	}
	if send([]byte("{\"type\":\"ready\"}\n")) != nil {
		return nil
	}
	err = actor.do(func() error {
		return watcher.Run(r.Context(), idleAfter, func(events []files.Event) error {
			var lines []byte
			for _, event := range events {
				lines = appendEvent(lines, event)
			}
			return send(lines)
		})
	})
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	send([]byte("{\"end\":true}\n"))
	return nil
}

func appendEvent(b []byte, event files.Event) []byte {
	b = appendQuoted(append(b, `{"type":`...), event.Type)
	if event.Path != "" {
		b = appendQuoted(append(b, `,"path":`...), event.Path)
	}
	if event.From != "" {
		b = appendQuoted(append(b, `,"from":`...), event.From)
	}
	return append(b, "}\n"...)
}
