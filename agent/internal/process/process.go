// Package process runs the host's commands: it starts them as whom and where they shall run, keeps their output for those who
// read it, gives access to their input, and ends them with everything that they have started.
package process

import (
	"context"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Process is a session: a command that has been started, and its output.
type Process struct {
	ID         string
	PID        int
	Argv       []string // shortened
	User       string
	Started    time.Time
	Background bool // it outlives the request that has started it
	Stdin      bool // it has a pipe for its stdin
	Log        *Log

	stdin    *input
	terminal *source // nil without
	size     atomic.Pointer[Size]
	sources  []*source // by stream
	group    *Cgroup   // nil without cgroup v2
	reaper   *Reaper
	timer    *time.Timer // of the timeout; nil without

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
	for _, source := range p.sources {
		source.end()
	}
	p.stdin.close()
}

// pump reads the output to its end, and returns when the command has ended too.
func (p *Process) pump() {
	var others sync.WaitGroup
	for i, source := range p.sources[1:] {
		others.Add(1)
		go func() {
			defer others.Done()
			source.pump(p.Log, Stream(i+1))
		}()
	}
	p.sources[0].pump(p.Log, Stdout)
	others.Wait()
	<-p.done
}

// Attach returns a reader of the output that is kept from the given offsets on. Close ends it.
func (p *Process) Attach(stdout, stderr int64) (*Reader, error) {
	if reader := p.Log.attach([2]int64{stdout, stderr}); reader != nil {
		return reader, nil
	}
	return nil, noSuchProcess(p.ID)
}

// Watch is for one that follows the session without its output: the wait for a reader ends. The caller calls stop.
func (p *Process) Watch() (stop func()) { return p.Log.watch() }

// Readers returns how many follow the session.
func (p *Process) Readers() int { return p.Log.followers() }

// TerminalSize returns the size that the terminal was given, nil without one.
func (p *Process) TerminalSize() *Size { return p.size.Load() }

// Resize sets the terminal's size. If it has that size already, its foreground process group is told all the same.
func (p *Process) Resize(size Size) error {
	if p.terminal == nil {
		return fail(NoTerminal, quote(p.ID)+": the process has no terminal")
	}
	var err error
	if !p.reaper.IfRunning(p.PID, func() { err = p.terminal.resize(size) }) {
		return noSuchProcess(p.ID)
	}
	if err == nil {
		p.size.Store(&size)
	}
	return err
}

// Signal sends a signal to the command's process group, or to the foreground one of its terminal.
func (p *Process) Signal(signal int) error {
	err := error(syscall.ESRCH)
	if !p.reaper.IfRunning(p.PID, func() {
		if p.terminal != nil {
			if group := p.terminal.foregroundGroup(); group > 0 {
				err = syscall.Kill(-group, syscall.Signal(signal))
			}
		}
		if err == syscall.ESRCH {
			err = syscall.Kill(-p.PID, syscall.Signal(signal))
		}
	}) {
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

// KillAndWait kills as Kill does and waits until nothing of the command is left, or for ctx. It does nothing to one that has ended.
func (p *Process) KillAndWait(ctx context.Context) error {
	if isClosed(p.done) {
		return nil
	}
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
