// Package process runs the host's commands. It starts them with the requested identity, keeps their
// output for readers, passes them input, and terminates them with their descendants.
package process

import (
	"context"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Process is a session: a command that was started, and its output.
type Process struct {
	ID         string
	PID        int
	Argv       []string // see shortened
	User       string
	Started    time.Time
	Background bool // the command outlives the request that started it

	restoreSignal int  // see Spec
	Stdin         bool // stdin is a pipe
	Log           *Log

	stdin    *input
	terminal *source // nil without a terminal
	size     atomic.Pointer[Size]
	sources  []*source // indexed by Stream
	group    *Cgroup   // nil without cgroup v2
	reaper   *Reaper
	timer    *time.Timer // for the timeout; may be nil

	done     chan struct{}
	timedOut bool // guarded by the reaper's lock
	status   Status

	uses     sync.Mutex
	users    int  // users of group; the last one releases it; guarded by uses
	released bool // the command itself no longer uses group; guarded by uses
	finished bool // the request of a foreground command has ended; guarded by the manager's lock
}

// Status describes how a command ended. Exactly one of ExitCode and Signal is not negative.
type Status struct {
	ExitCode int
	Signal   int
	TimedOut bool
	// OOMKilled tells that the kernel killed a process of the command for lack of memory.
	OOMKilled bool
	Duration  time.Duration
}

// Done returns a channel that is closed when the command's first process has ended. Status is valid
// from then on.
func (p *Process) Done() <-chan struct{} { return p.done }

// Status returns how the command ended.
func (p *Process) Status() Status { return p.status }

// ended receives the status from the reaper.
func (p *Process) ended(wait syscall.WaitStatus) {
	p.status = Status{ExitCode: -1, Signal: -1, TimedOut: p.timedOut, Duration: time.Since(p.Started)}
	if wait.Signaled() {
		p.status.Signal = int(wait.Signal())
	} else {
		p.status.ExitCode = wait.ExitStatus()
	}
	p.status.OOMKilled = p.group != nil && p.group.OOMKilled()
	close(p.done)
	for _, source := range p.sources {
		source.end()
	}
	p.stdin.close()
}

// pump reads the output until its end, and waits for the end of the command.
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

// Attach returns a reader of the kept output from the given offsets on. The caller must close it.
func (p *Process) Attach(stdout, stderr int64) (*Reader, error) {
	if reader := p.Log.attach([2]int64{stdout, stderr}); reader != nil {
		return reader, nil
	}
	return nil, noSuchProcess(p.ID)
}

// Watch registers a client that follows the session without output, which ends the wait for a
// reader. The caller must call stop.
func (p *Process) Watch() (stop func()) { return p.Log.watch() }

// Readers returns how many clients follow the session.
func (p *Process) Readers() int { return p.Log.followers() }

// TerminalSize returns the size of the terminal, or nil if the session has no terminal.
func (p *Process) TerminalSize() *Size { return p.size.Load() }

// Resize sets the size of the terminal. If the size is unchanged, the foreground process group is
// signalled all the same.
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

// Signal sends a signal to the command's process group, or to the foreground process group of its
// terminal.
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
		return fail(BadRequest, "no such signal")
	}
	return err
}

// Kill kills all processes in the command's cgroup, or in its process group without cgroup v2. If
// the command has ended it does nothing: a normal end leaves descendants alone.
func (p *Process) Kill() { p.reaper.IfRunning(p.PID, p.kill) }

// Lives reports whether any process of the session is left: the command itself or a descendant.
func (p *Process) Lives() bool {
	if !isClosed(p.done) {
		return true
	}
	if p.group == nil {
		p.uses.Lock()
		defer p.uses.Unlock()
		return !p.released && p.orphaned()
	}
	if !p.retainGroup() {
		return false
	}
	defer p.releaseGroup()
	return !p.group.Empty()
}

// orphaned reports whether the process group lives on without its leader. The kernel does not reuse
// the leader's ID before the group is gone: if a process has it, that is another one.
func (p *Process) orphaned() bool {
	return syscall.Kill(p.PID, 0) == syscall.ESRCH && syscall.Kill(-p.PID, 0) == nil
}

func (p *Process) expire() {
	p.reaper.IfRunning(p.PID, func() {
		p.timedOut = true
		p.kill()
	})
}

// kill is called with the reaper's lock held, so that the process ID is still the command's.
func (p *Process) kill() {
	syscall.Kill(-p.PID, syscall.SIGKILL)
	if p.group != nil && !p.group.Kill() && p.retainGroup() {
		go func() {
			defer p.releaseGroup()
			p.group.KillAll(nil)
		}()
	}
}

// KillAndWait kills all processes of the session, and waits until none is left or ctx is done. The
// command itself may have ended.
func (p *Process) KillAndWait(ctx context.Context) error {
	grouped := p.group != nil && p.retainGroup()
	if grouped {
		defer p.releaseGroup()
	}
	p.Kill()
	select {
	case <-p.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if grouped {
		p.group.KillAll(ctx.Done())
	} else if p.group == nil {
		for wait := time.Millisecond; p.orphaned() && ctx.Err() == nil; wait = min(2*wait, 20*time.Millisecond) {
			syscall.Kill(-p.PID, syscall.SIGKILL)
			time.Sleep(wait)
		}
	}
	return ctx.Err()
}

// retainGroup prevents the release of the cgroup. The command itself is the first user.
func (p *Process) retainGroup() bool {
	p.uses.Lock()
	defer p.uses.Unlock()
	if p.users == 0 {
		return false
	}
	p.users++
	return true
}

func (p *Process) releaseGroup() {
	p.uses.Lock()
	defer p.uses.Unlock()
	if p.users--; p.users == 0 && p.group != nil {
		p.group.Release()
	}
}

// release ends the command's own use of the cgroup. Idempotent.
func (p *Process) release() {
	p.uses.Lock()
	first := !p.released
	p.released = true
	p.uses.Unlock()
	if first {
		p.releaseGroup()
	}
}

func noSuchProcess(id string) error {
	return fail(NoSuchProcess, quote(id)+": no such process, or it has ended")
}
