package server

import (
	"cmp"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"squib/agent/internal/files"
	"squib/agent/internal/process"
)

// lengthHeader is the number of bytes that follow of a file. Content-Length is not used, because
// with it the host's HTTP/2 library would process each frame of the body.
const lengthHeader = "Squib-Length"

// maxPath is the kernel's limit for a path.
const maxPath = 4095

// query parses the query of a file request. err is the first error found.
type query struct {
	url.Values
	err error
}

func queryOf(r *http.Request) *query {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		err = badRequest("query: " + err.Error())
	}
	return &query{values, err}
}

func (q *query) fail(err error) {
	if q.err == nil {
		q.err = err
	}
}

// actor is the user who acts.
type actor struct{ process.Account }

// actor looks up the user who acts, by default root.
func (s *Server) actor(user string) (actor, error) {
	account, err := s.config.Accounts.Lookup(cmp.Or(user, "root"))
	return actor{account}, err
}

// do calls f with the rights of the actor, and returns its error.
func (a actor) do(f func() error) (err error) {
	a.As(func() { err = f() })
	return err
}

// path returns an absolute path. Relative ones begin in the actor's home.
func (a actor) path(name, path string) (string, error) {
	if path == "" || strings.Contains(path, "\x00") {
		return "", badRequest(name + ": " + strconv.Quote(path) + " is not a path")
	}
	if !strings.HasPrefix(path, "/") {
		if !strings.HasPrefix(a.Home, "/") {
			return "", badRequest(name + ": " + strconv.Quote(path) + " is relative, and user " + a.Name + " has no home directory")
		}
		path = strings.TrimRight(a.Home, "/") + "/" + path
	}
	if len(path) > maxPath {
		return "", badRequest(name + " is longer than " + strconv.Itoa(maxPath) + " bytes")
	}
	return path, nil
}

// target returns the user who acts, and the path of the request.
func (s *Server) target(q *query) (a actor, path string) {
	a, err := s.actor(q.Get("as_user"))
	q.fail(err)
	path, err = a.path("path", q.Get("path"))
	q.fail(err)
	return a, path
}

func (q *query) flag(name string, fallback bool) bool {
	switch q.Get(name) {
	case "":
		return fallback
	case "0", "1":
		return q.Get(name) == "1"
	}
	q.fail(badRequest(name + " must be 0 or 1"))
	return false
}

// number returns a size in bytes.
func (q *query) number(name string, fallback int64) int64 {
	if !q.Has(name) {
		return fallback
	}
	n, err := strconv.ParseInt(q.Get(name), 10, 64)
	if err != nil || n < 0 {
		q.fail(badRequest(name + " must be a number of bytes"))
	}
	return n
}

// time returns a time in nanoseconds since 1970, or nil.
func (q *query) time(name string) *int64 {
	if !q.Has(name) {
		return nil
	}
	n, err := strconv.ParseInt(q.Get(name), 10, 64)
	if err != nil {
		q.fail(badRequest(name + " must be a time in nanoseconds"))
	}
	return &n
}

// attributes parses the mode and the owner of a new file. Empty strings mean the defaults.
func (s *Server) attributes(mode, user string) (want files.Attributes, err error) {
	if mode != "" {
		bits, err := strconv.ParseUint(mode, 8, 32)
		if err != nil || bits > 0o7777 {
			return want, badRequest("mode must be octal, at most 7777")
		}
		mode := uint32(bits)
		want.Mode = &mode
	}
	want.Owner, err = s.owner(user)
	return want, err
}

func (s *Server) owner(user string) (*files.Owner, error) {
	if user == "" {
		return nil, nil
	}
	account, err := s.config.Accounts.Lookup(user)
	if err != nil {
		return nil, err
	}
	return &files.Owner{UID: account.UID, GID: account.GID}, nil
}

func (s *Server) readFile(w http.ResponseWriter, r *http.Request) error {
	q := queryOf(r)
	actor, path := s.target(q)
	offset, length := q.number("offset", 0), q.number("length", math.MaxInt64)
	if q.err != nil {
		return q.err
	}
	var file *files.Reader
	err := actor.do(func() (err error) { file, err = files.Open(path, offset, length); return err })
	if err != nil {
		return err
	}
	defer file.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	if file.Length >= 0 {
		w.Header().Set(lengthHeader, strconv.FormatInt(file.Length, 10))
	}
	if _, err := file.WriteTo(w); err != nil {
		panic(http.ErrAbortHandler) // RST_STREAM: the response has begun and cannot carry an error
	}
	return nil
}

func (s *Server) writeFile(w http.ResponseWriter, r *http.Request) error {
	q := queryOf(r)
	actor, path := s.target(q)
	parents := q.flag("parents", false)
	mtime := q.time("mtime_ns")
	if q.err != nil {
		return q.err
	}
	want, err := s.attributes(q.Get("mode"), q.Get("user"))
	if err != nil {
		return err
	}
	want.Mtime = mtime
	var info files.Info
	err = s.uploads.run(w, func(temporary string) error {
		return actor.do(func() (err error) {
			info, err = files.Write(path, r.Body, want, parents, temporary)
			return err
		})
	})
	if err != nil {
		return err
	}
	return s.describe(w, info)
}

func (s *Server) removeFile(w http.ResponseWriter, r *http.Request) error {
	q := queryOf(r)
	actor, path := s.target(q)
	recursive := q.flag("recursive", false)
	if q.err != nil {
		return q.err
	}
	if err := actor.do(func() error { return files.Remove(path, recursive) }); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) statFile(w http.ResponseWriter, r *http.Request) error {
	q := queryOf(r)
	actor, path := s.target(q)
	follow := q.flag("follow", true)
	if q.err != nil {
		return q.err
	}
	var info files.Info
	err := actor.do(func() (err error) { info, err = files.Stat(path, follow); return err })
	if err != nil {
		return err
	}
	return s.describe(w, info)
}

func (s *Server) describe(w http.ResponseWriter, info files.Info) error {
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(appendInfo(nil, info, namesOf(s.config.Accounts)), '\n'))
	return nil
}

func (s *Server) listFiles(w http.ResponseWriter, r *http.Request) error {
	q := queryOf(r)
	actor, path := s.target(q)
	if q.err != nil {
		return q.err
	}
	var dir *files.Dir
	err := actor.do(func() (err error) { dir, err = files.OpenDir(path); return err })
	if err != nil {
		return err
	}
	defer dir.Close()
	names := namesOf(s.config.Accounts)
	w.Header().Set("Content-Type", ndjson)
	lines := make([]byte, 0, lineBuffer)
	err = actor.do(func() error {
		return dir.Each(func(info files.Info) error {
			lines = append(appendInfo(lines, info, names), '\n')
			if len(lines) < lineBuffer/2 {
				return nil
			}
			_, err := w.Write(lines)
			lines = lines[:0]
			return err
		})
	})
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	w.Write(append(lines, "{\"end\":true}\n"...))
	return nil
}

func (s *Server) makeDirectory(w http.ResponseWriter, r *http.Request) error {
	var request struct {
		Path    text  `json:"path"`
		Mode    *text `json:"mode"`
		User    *text `json:"user"`
		AsUser  *text `json:"as_user"`
		Parents bool  `json:"parents"`
	}
	if err := decode(w, r, &request); err != nil {
		return err
	}
	actor, err := s.actor(orEmpty(request.AsUser))
	if err != nil {
		return err
	}
	path, err := actor.path("path", string(request.Path))
	if err != nil {
		return err
	}
	want, err := s.attributes(orEmpty(request.Mode), orEmpty(request.User))
	if err != nil {
		return err
	}
	if err := actor.do(func() error { return files.Mkdir(path, want, request.Parents) }); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func orEmpty(t *text) string {
	if t == nil {
		return ""
	}
	return string(*t)
}

func (s *Server) renameFile(w http.ResponseWriter, r *http.Request) error {
	var request struct {
		From   text  `json:"from"`
		To     text  `json:"to"`
		AsUser *text `json:"as_user"`
	}
	if err := decode(w, r, &request); err != nil {
		return err
	}
	actor, err := s.actor(orEmpty(request.AsUser))
	if err != nil {
		return err
	}
	from, err := actor.path("from", string(request.From))
	if err != nil {
		return err
	}
	to, err := actor.path("to", string(request.To))
	if err != nil {
		return err
	}
	if err := actor.do(func() error { return files.Rename(from, to) }); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

const (
	ndjson = "application/x-ndjson"
	// lineBuffer is the approximate size of one piece of a listing.
	lineBuffer = 64 << 10
)

func namesOf(accounts process.Accounts) files.Names {
	users, groups := accounts.Names()
	return files.Names{Users: users, Groups: groups}
}

// appendInfo appends a file's description in JSON.
func appendInfo(b []byte, info files.Info, names files.Names) []byte {
	b = appendQuoted(append(b, `{"name":`...), info.Name)
	b = appendQuoted(append(b, `,"type":`...), info.Type)
	b = strconv.AppendInt(append(b, `,"size":`...), info.Size, 10)
	b = strconv.AppendUint(append(b, `,"mode":`...), uint64(info.Mode), 10)
	b = strconv.AppendUint(append(b, `,"uid":`...), uint64(info.UID), 10)
	b = strconv.AppendUint(append(b, `,"gid":`...), uint64(info.GID), 10)
	b = appendName(append(b, `,"user":`...), names.Users, info.UID)
	b = appendName(append(b, `,"group":`...), names.Groups, info.GID)
	b = strconv.AppendInt(append(b, `,"mtime_ns":`...), info.MtimeNS, 10)
	b = append(b, `,"link_target":`...)
	if info.LinkTarget == nil {
		b = append(b, "null"...)
	} else {
		b = appendQuoted(b, *info.LinkTarget)
	}
	return append(b, '}')
}

func appendName(b []byte, names map[uint32]string, id uint32) []byte {
	if name, known := names[id]; known {
		return appendQuoted(b, name)
	}
	return append(b, "null"...)
}
