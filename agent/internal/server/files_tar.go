package server

import (
	"io"
	"net/http"

	"squib/agent/internal/files"
)

func (s *Server) readTar(w http.ResponseWriter, r *http.Request) error {
	q := queryOf(r)
	actor, err := s.actor(q.Get("as_user"))
	q.fail(err)
	xattrs := q.flag("xattrs", false)
	var paths []string
	for _, path := range q.Values["path"] {
		path, err := actor.path("path", path)
		q.fail(err)
		paths = append(paths, path)
	}
	if len(paths) == 0 {
		q.fail(badRequest("path is missing"))
	}
	if q.err != nil {
		return q.err
	}
	var packer *files.Packer
	err = actor.do(func() (err error) {
		packer, err = files.NewPacker(paths, namesOf(s.config.Accounts), xattrs)
		return err
	})
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-tar")
	if actor.do(func() error { return packer.Pack(w) }) != nil {
		panic(http.ErrAbortHandler)
	}
	return nil
}

func (s *Server) writeTar(w http.ResponseWriter, r *http.Request) error {
	q := queryOf(r)
	actor, path := s.target(q)
	keep := q.flag("keep_owner", false)
	create, parents := q.flag("create", false), q.flag("parents", false)
	unpack := files.Unpack
	if create {
		unpack = files.UnpackNew
	} else if parents {
		q.fail(badRequest("parents requires create"))
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
	err = s.uploads.run(w, func(temporary string) error {
		return actor.do(func() (err error) {
			if parents {
				err = files.MakeParents(path, owner)
			}
			if err != nil {
				return err
			}
			count, err = unpack(path, r.Body, owner, keep, temporary)
			return err
		})
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
