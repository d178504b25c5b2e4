// Package server answers the host: the HTTP endpoints of protocol/agent.md, section 3, over unencrypted HTTP/2.
package server

import (
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"squib/agent/internal/process"
	"squib/agent/internal/transport"
)

// Receive windows. All streams share the connection's, and a command that does not read its stdin holds its stream's for as
// long as it likes: so the connection's is many times the stream's, or two such commands would shut out every other request body.
// A stream's has room for several of the host's largest frames, or each would wait for the word that the one before was read.
const (
	connectionWindow = 32<<20 - 1
	streamWindow     = 2 << 20
)

// Config is what the server needs of the guest.
type Config struct {
	Version  string // of the agent
	Identity Identity
	Accounts process.Accounts
	PowerOff func(grace time.Duration) // called once in its own goroutine, after the host was answered
	Log      *log.Logger
}

// Identity applies what setup gives the guest. The arguments have been checked.
type Identity interface {
	AddEntropy(seed []byte) error
	SetClock(now time.Time) error
	SetHostname(name string) error
	SetMachineID(id string) error
}

// Server serves one guest.
type Server struct {
	config    Config
	processes *process.Manager
	http      *http.Server
	incoming  incoming

	powerOffOnce sync.Once
}

// New returns a server for the commands of processes.
func New(processes *process.Manager, config Config) *Server {
	s := &Server{config: config, processes: processes}
	mux := http.NewServeMux()
	for pattern, endpoint := range map[string]handler{
		"GET /v1/hello":                  s.hello,
		"POST /v1/setup":                 s.setup,
		"POST /v1/exec":                  s.exec,
		"GET /v1/processes":              s.list,
		"GET /v1/processes/{id}":         s.session,
		"GET /v1/processes/{id}/output":  s.output,
		"POST /v1/processes/{id}/stdin":  s.stdin,
		"POST /v1/processes/{id}/resize": s.resize,
		"POST /v1/processes/{id}/signal": s.signal,
		"DELETE /v1/processes/{id}":      s.kill,
		"POST /v1/poweroff":              s.powerOff,
		"GET /v1/files":                  s.readFile,
		"PUT /v1/files":                  s.writeFile,
		"DELETE /v1/files":               s.removeFile,
		"GET /v1/files/stat":             s.statFile,
		"GET /v1/files/list":             s.listFiles,
		"GET /v1/files/tar":              s.readTar,
		"PUT /v1/files/tar":              s.writeTar,
		"GET /v1/files/watch":            s.watchFiles,
		"POST /v1/files/mkdir":           s.makeDirectory,
		"POST /v1/files/rename":          s.renameFile,
		"/": func(_ http.ResponseWriter, r *http.Request) error {
			return badRequest("no such endpoint: " + r.Method + " " + r.URL.Path)
		},
	} {
		mux.Handle(pattern, endpoint)
	}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	s.http = &http.Server{
		Handler:   mux,
		Protocols: &protocols,
		ErrorLog:  config.Log,
		HTTP2: &http.HTTP2Config{
			MaxReadFrameSize:              transport.MaxFrame,
			MaxConcurrentStreams:          1000,
			MaxReceiveBufferPerConnection: connectionWindow,
			MaxReceiveBufferPerStream:     streamWindow,
		},
	}
	return s
}

// Serve answers on the listener's connections until it fails.
func (s *Server) Serve(l net.Listener) error { return s.http.Serve(l) }
