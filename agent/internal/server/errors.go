package server

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"squib/agent/internal/files"
	"squib/agent/internal/process"
)

// maxBody bounds a JSON body. The kernel takes 2 MiB of arguments and environment, and an escaped
// byte takes six bytes.
const maxBody = 16 << 20

var statusOf = map[process.Code]int{
	process.BadRequest:      http.StatusBadRequest,
	process.NoShell:         http.StatusUnprocessableEntity,
	process.CommandNotFound: http.StatusUnprocessableEntity,
	process.ArgsTooLong:     http.StatusUnprocessableEntity,
	process.NotExecutable:   http.StatusUnprocessableEntity,
	process.BadCwd:          http.StatusUnprocessableEntity,
	process.NoSuchUser:      http.StatusUnprocessableEntity,
	process.NoSuchProcess:   http.StatusNotFound,
	process.StdinClosed:     http.StatusConflict,
	process.NoTerminal:      http.StatusConflict,
	process.PoweringOff:     http.StatusServiceUnavailable,
	process.NotSetUp:        http.StatusServiceUnavailable,
	process.Internal:        http.StatusInternalServerError,
	files.NoSuchFile:        http.StatusNotFound,
	files.FileExists:        http.StatusConflict,
	files.NotAFile:          http.StatusConflict,
	files.IsADirectory:      http.StatusConflict,
	files.NotADirectory:     http.StatusConflict,
	files.DirectoryNotEmpty: http.StatusConflict,
	files.PermissionDenied:  http.StatusForbidden,
	files.GuestDiskFull:     http.StatusInsufficientStorage,
}

func badRequest(message string) error {
	return &process.Error{Code: process.BadRequest, Message: message}
}

// handler serves an endpoint. It returns an error only if it has not sent a response.
type handler func(http.ResponseWriter, *http.Request) error

func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := h(w, r); err != nil {
		writeError(w, err)
	}
}

func writeError(w http.ResponseWriter, err error) {
	code := process.CodeOf(err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(statusOf[code])
	b := append(appendQuoted([]byte(`{"error":{"code":`), string(code)), `,"message":`...)
	w.Write(append(appendQuoted(b, err.Error()), "}}\n"...))
}

func writeJSON(w http.ResponseWriter, body any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(b, '\n'))
	return nil
}

// decode reads a JSON object from the body. An empty body counts as an empty object.
func decode(w http.ResponseWriter, r *http.Request, into any) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return badRequest("the body is larger than 16 MiB")
		}
		return err
	}
	if len(body) == 0 {
		body = []byte("{}")
	}
	if err := json.Unmarshal(body, into); err != nil {
		return badRequest("body: " + err.Error())
	}
	return nil
}
