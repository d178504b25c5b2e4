package server

import (
	"net/http"
	"sync"
	"time"

	"squib/agent/internal/process"
)

// cleanupTimeout bounds the wait for uploads that were cut off.
const cleanupTimeout = 2 * time.Second

var errPoweringOff = &process.Error{Code: process.Internal, Message: "the guest powers off"}

// incoming are the uploads that are under way. What of them is on the disk is removed before the guest powers off.
type incoming struct {
	mu      sync.Mutex
	ended   bool
	bodies  map[*http.ResponseController]struct{}
	waiting sync.WaitGroup
}

// take runs an upload. Its body ends with an error when the guest powers off.
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

// end cuts off all uploads, and waits until nothing is left of them.
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
