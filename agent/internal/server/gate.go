package server

import (
	"net/http"
	"sync"
	"syscall"
	"time"

	"squib/agent/internal/process"
)

// frozenPatience bounds how long a request waits while the guest is frozen. The host freezes a guest
// for a fraction of a second.
const frozenPatience = 10 * time.Second

// gate is closed until the guest has entropy of its own, and again while it is frozen.
type gate struct {
	mu     sync.Mutex
	isOpen bool
	opened chan struct{} // closed when a frozen guest goes on; nil before the first setup
}

// open lets requests pass.
func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.isOpen && g.opened != nil {
		close(g.opened)
	}
	g.isOpen = true
}

// close makes requests wait. It reports whether the gate was open.
func (g *gate) close() (wasOpen bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if wasOpen = g.isOpen; wasOpen {
		g.isOpen, g.opened = false, make(chan struct{})
	}
	return wasOpen
}

// passes reports whether requests pass.
func (g *gate) passes() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.isOpen
}

// pass returns when the guest may serve r. Before the first setup it fails at once.
func (g *gate) pass(r *http.Request) error {
	patience := time.NewTimer(frozenPatience)
	defer patience.Stop()
	for {
		g.mu.Lock()
		isOpen, opened := g.isOpen, g.opened
		g.mu.Unlock()
		if isOpen {
			return nil
		}
		if opened != nil {
			select {
			case <-opened:
				continue
			case <-r.Context().Done():
			case <-patience.C:
			}
		}
		return &process.Error{Code: process.NotSetUp, Message: "the guest has no entropy of its own yet"}
	}
}

// freeze stops all commands. The guest then waits for a setup with entropy: this memory may go on
// in several machines.
func (s *Server) freeze(w http.ResponseWriter, r *http.Request) error {
	var request struct {
		Sync bool `json:"sync"`
	}
	if err := decode(w, r, &request); err != nil {
		return err
	}
	if request.Sync {
		syscall.Sync() // most of it while commands run
	}
	wasOpen := s.gate.close()
	if err := s.processes.Freeze(); err != nil {
		if wasOpen {
			s.gate.open()
		}
		return err
	}
	if request.Sync {
		syscall.Sync()
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
