package server

import (
	"net/http"
	"sync"
	"time"

	"squib/agent/internal/process"
)

// cleanupTimeout bounds the wait for aborted uploads.
const cleanupTimeout = 2 * time.Second

var errPoweringOff = &process.Error{Code: process.Internal, Message: "the guest is powering off"}

// incoming tracks the uploads in progress, so that their temporary files can be removed before the
// guest powers off.
type incoming struct {
	mu      sync.Mutex
	ended   bool
	bodies  map[*http.ResponseController]struct{}
	waiting sync.WaitGroup
}

// take runs an upload. Reading its body fails when the guest powers off.
func (in *incoming) take(w http.ResponseWriter, upload func() error) error {
	body := http.NewResponseController(w)
	in.mu.Lock()
	if in.ended {
		in.mu.Unlock()
		return errPoweringOff
	}
	if in.bodies == nil {
		in.bodies = map[*http.ResponseController]struct{}{}
	}
	in.bodies[body] = struct{}{}
	in.waiting.Add(1)
	in.mu.Unlock()
	defer in.waiting.Done()
	err := upload()
	in.mu.Lock()
	defer in.mu.Unlock()
	delete(in.bodies, body)
	if in.ended && err != nil {
		return errPoweringOff
	}
	return err
}

// end aborts all uploads and waits until they have cleaned up.
func (in *incoming) end() {
	in.mu.Lock()
	in.ended = true
	for body := range in.bodies {
		body.SetReadDeadline(time.Unix(1, 0))
	}
	in.mu.Unlock()
	ended := make(chan struct{})
	go func() { in.waiting.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(cleanupTimeout):
	}
}
