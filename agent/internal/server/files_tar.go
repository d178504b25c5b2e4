package server

import (
	"io"
	"net/http"

	"squib/agent/internal/files"
)

func (s *Server) readTar(w http.ResponseWriter, r *http.Request) error {
	q := queryOf(r)
	paths := q.Values["path"]
	if len(paths) == 0 {
		q.fail(badRequest("path is missing"))
	}
	for _, path := range paths {
		q.fail(checkPath("path", path))
	}
	if q.err != nil {
		return q.err
	}
	packer, err := files.NewPacker(paths, namesOf(s.config.Accounts))
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-tar")
	if packer.Pack(w) != nil {
		panic(http.ErrAbortHandler)
	}
	return nil
}

func (s *Server) writeTar(w http.ResponseWriter, r *http.Request) error {
	q := queryOf(r)
	path, keep := q.path(), q.flag("keep_owner", false)
	unpack := files.Unpack
	if q.flag("create", false) {
		unpack = files.UnpackNew
	}
	owner, err := s.owner(q.Get("user"))
	q.fail(err)
	if owner != nil && keep {
		q.fail(badRequest("user and keep_owner cannot be combined"))
	}
	if q.err != nil {
		return q.err
	}
	var count files.UnpackResult
	err = s.uploads.run(w, func(temporary string) (err error) {
		count, err = unpack(path, r.Body, owner, keep, temporary)
		return err
	})
	if err != nil {
		return err
	}
	// Read the padding after the archive; otherwise the stream would be reset with the response.
	io.CopyN(io.Discard, r.Body, maxPadding)
	return writeJSON(w, count)
}

// maxPadding bounds the padding after an archive: tar programs pad it to whole records.
const maxPadding = 1 << 20
