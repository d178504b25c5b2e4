// Package server implements the HTTP endpoints of protocol/agent.md, section 3, over unencrypted
// HTTP/2.
package server

import (
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"squib/agent/internal/files"
	"squib/agent/internal/identity"
	"squib/agent/internal/process"
	"squib/agent/internal/transport"
)

// Receive windows. All streams share the connection's window, and a command that does not read its
// stdin can occupy its stream's window for any time. The connection's window is therefore many
// times a stream's: otherwise two such commands would block all other request bodies. A stream's
// window holds several of the host's largest frames, so that the host need not wait for an update
// after each.
const (
	connectionWindow = 32<<20 - 1
	streamWindow     = 2 << 20
)

// Config configures a Server.
type Config struct {
	Version  string // of the agent
	Identity Identity
	Accounts process.Accounts
	Records  *files.Records            // of temporary files; nil records none
	PowerOff func(grace time.Duration) // called once, in its own goroutine, after the response
	Log      *log.Logger
}

// Identity applies the values of a setup request, which were validated before.
type Identity interface {
	AddEntropy(seed []byte) error
	SetClock(now time.Time) error
	SetHostname(name string) error
	SetMachineID(id string) error
	SetBootID(id string) error
	Describe(vm identity.VM) error
}

// Server serves one guest.
type Server struct {
	config    Config
	processes *process.Manager
	http      *http.Server
	uploads   uploads

	gate         gate
	powerOffOnce sync.Once
}

// New returns a server that runs commands with processes.
func New(processes *process.Manager, config Config) *Server {
	s := &Server{config: config, processes: processes, uploads: uploads{records: config.Records}}
	mux := http.NewServeMux()
	for pattern, endpoint := range map[string]handler{
		"GET /v1/hello":                  s.hello,
		"POST /v1/setup":                 s.setup,
		"POST /v1/freeze":                s.freeze,
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
		"GET /v1/account":                s.account,
		"/": func(_ http.ResponseWriter, r *http.Request) error {
			return badRequest("no such endpoint: " + r.Method + " " + r.URL.Path)
		},
	} {
		mux.Handle(pattern, s.needsEntropy(pattern, endpoint))
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

// needsEntropy refuses an endpoint until the guest has entropy of its own. Clones of one memory image
// would otherwise draw the same random numbers. What gives a guest its entropy, or freezes or ends it,
// is served.
func (s *Server) needsEntropy(pattern string, endpoint handler) handler {
	switch pattern {
	case "GET /v1/hello", "POST /v1/setup", "POST /v1/freeze", "POST /v1/poweroff", "/":
		return endpoint
	}
	return func(w http.ResponseWriter, r *http.Request) error {
		if err := s.gate.pass(r); err != nil {
			return err
		}
		return endpoint(w, r)
	}
}

// Serve serves the listener's connections until the listener fails.
func (s *Server) Serve(l net.Listener) error { return s.http.Serve(l) }
