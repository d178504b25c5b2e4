package server

import (
	"net/http"
	"sync"
	"time"

	"squib/agent/internal/files"
	"squib/agent/internal/process"
)

// cleanupTimeout bounds the wait for aborted uploads.
const cleanupTimeout = 2 * time.Second

var errPoweringOff = &process.Error{Code: process.PoweringOff, Message: "the guest is powering off"}

// uploads tracks the uploads in progress, so that their temporary files can be removed before the
// guest powers off, or at the next boot if the VM is killed.
type uploads struct {
	records *files.Records
	mu      sync.Mutex
	ended   bool
	bodies  map[*http.ResponseController]struct{}
	waiting sync.WaitGroup
}

// run runs an upload, which may use the name temporary for incomplete files. Reading its body fails
// when the guest powers off.
func (u *uploads) run(w http.ResponseWriter, upload func(temporary string) error) error {
	body := http.NewResponseController(w)
	u.mu.Lock()
	if u.ended {
		u.mu.Unlock()
		return errPoweringOff
	}
	if u.bodies == nil {
		u.bodies = map[*http.ResponseController]struct{}{}
	}
	u.bodies[body] = struct{}{}
	u.waiting.Add(1)
	u.mu.Unlock()
	defer u.waiting.Done()
	temporary, err := u.records.Add()
	if err == nil {
		err = upload(temporary)
		u.records.Remove(temporary)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.bodies, body)
	if u.ended && err != nil {
		return errPoweringOff
	}
	return err
}

// abort aborts all uploads and waits until they have cleaned up.
func (u *uploads) abort() {
	u.mu.Lock()
	u.ended = true
	for body := range u.bodies {
		body.SetReadDeadline(time.Unix(1, 0))
	}
	u.mu.Unlock()
	ended := make(chan struct{})
	go func() { u.waiting.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(cleanupTimeout):
	}
}
