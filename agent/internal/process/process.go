// Package process runs the host's commands: it starts them as whom and where they shall run, gives access to their streams, and ends them
// with everything that they have started.
package process

import (
	"context"
	"sync"
	"syscall"
	"time"
)

// Process is a command that has been started.
type Process struct {
	ID      string
	PID     int
	Argv    []string
	User    string
	Started time.Time

	Stdout, Stderr *Output

	stdin  *input
	group  *Cgroup // nil without cgroup v2
	reaper *Reaper

	done     chan struct{}
	timedOut bool // guarded by the reaper's lock
	status   Status

	uses  sync.Mutex
	users int // of group, which the last one releases; guarded by uses
}

// Status is how a command ended. Exactly one of ExitCode and Signal is not negative.
type Status struct {
	ExitCode int
	Signal   int
	TimedOut bool
	Duration time.Duration
}

// Done is closed when the command's first process has ended; Status is valid from then on.
func (p *Process) Done() <-chan struct{} { return p.done }

// Status returns how the command ended.
func (p *Process) Status() Status { return p.status }

// ended takes the status from the reaper.
func (p *Process) ended(wait syscall.WaitStatus) {
	p.status = Status{ExitCode: -1, Signal: -1, TimedOut: p.timedOut, Duration: time.Since(p.Started)}
	if wait.Signaled() {
		p.status.Signal = int(wait.Signal())
	} else {
		p.status.ExitCode = wait.ExitStatus()
	}
	close(p.done)
	p.Stdout.end()
	p.Stderr.end()
	p.stdin.close()
}

// Signal sends a signal to the command's process group.
func (p *Process) Signal(signal int) error {
	var err error
	if !p.reaper.IfRunning(p.PID, func() { err = syscall.Kill(-p.PID, syscall.Signal(signal)) }) {
		return noSuchProcess(p.ID)
	}
	if err == syscall.EINVAL {
		return fail(BadRequest, "signal: no such signal")
	}
	return err
}

// Kill kills everything in the command's cgroup (without cgroup v2: in its process group), unless the command has ended
// already: a normal end leaves its descendants alone.
func (p *Process) Kill() { p.reaper.IfRunning(p.PID, p.kill) }

func (p *Process) expire() {
	p.reaper.IfRunning(p.PID, func() {
		p.timedOut = true
		p.kill()
	})
}

// kill is called with the reaper's lock, so that the pid is still the command's.
func (p *Process) kill() {
	syscall.Kill(-p.PID, syscall.SIGKILL)
	if p.group != nil && !p.group.Kill() && p.use() {
		go func() {
			defer p.unuse()
			p.group.KillAll(nil)
		}()
	}
}

// KillAndWait kills as Kill does and waits until nothing of the command is left, or for ctx.
func (p *Process) KillAndWait(ctx context.Context) error {
	grouped := p.group != nil && p.use()
	if grouped {
		defer p.unuse()
	}
	p.Kill()
	select {
	case <-p.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if grouped {
		p.group.KillAll(ctx.Done())
	} else {
		for wait := time.Millisecond; syscall.Kill(-p.PID, 0) == nil && ctx.Err() == nil; wait = min(2*wait, 20*time.Millisecond) {
			time.Sleep(wait)
		}
	}
	return ctx.Err()
}

// Release gives up the streams and the cgroup once the command has ended and its output was taken. What descendants in the
// background write from then on is dropped.
func (p *Process) Release() {
	p.Stdout.abandon()
	p.Stderr.abandon()
	p.unuse()
}

// use keeps the cgroup from being released; the command itself is its first user.
func (p *Process) use() bool {
	p.uses.Lock()
	defer p.uses.Unlock()
	if p.users == 0 {
		return false
	}
	p.users++
	return true
}

func (p *Process) unuse() {
	p.uses.Lock()
	defer p.uses.Unlock()
	if p.users--; p.users == 0 && p.group != nil {
		p.group.Release()
	}
}

func noSuchProcess(id string) error {
	return fail(NoSuchProcess, quote(id)+": no process has this id, or it has ended")
}
