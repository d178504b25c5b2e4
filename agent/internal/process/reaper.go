package process

import (
	"sync"
	"syscall"
)

// Reaper is the only caller of wait4(2) in the agent.
//
// As PID 1 the agent inherits every orphan of the guest and must reap it, and must not take the status of its own
// commands while doing so. One goroutine therefore reaps everything and gives each status to whoever has registered
// the pid. The lock is not held across fork and exec, which may take as long as the program's filesystem
// likes: a status that nobody has registered is kept while a fork is under way. So that a kept status cannot be an orphan's that had the
// same pid before, it counts only if the pid does not exist any more: a child that has not been reaped does.
type Reaper struct {
	mu        sync.Mutex
	running   map[int]func(syscall.WaitStatus)
	starting  int
	unclaimed map[int]syscall.WaitStatus
	forked    chan struct{} // a child may exist that did not before
	childless chan struct{} // closed while there is no child
}

// NewReaper returns a reaper; Run makes it work.
func NewReaper() *Reaper {
	return &Reaper{
		running:   map[int]func(syscall.WaitStatus){},
		unclaimed: map[int]syscall.WaitStatus{},
		forked:    make(chan struct{}, 1),
		childless: make(chan struct{}),
	}
}

// Run reaps for ever. It sleeps in waitid(2), which costs a thread and no signal handling.
func (r *Reaper) Run() {
	for {
		switch waitAny() {
		case nil:
			r.reap()
		case syscall.ECHILD:
			r.noteChildless()
			<-r.forked
		}
	}
}

// Start forks and executes as syscall.ForkExec does, and calls ended once, from another goroutine and with the reaper's lock
// held, when the process has ended; perhaps before Start returns.
func (r *Reaper) Start(path string, argv []string, attr *syscall.ProcAttr, ended func(syscall.WaitStatus)) (int, error) {
	r.mu.Lock()
	r.starting++
	if isClosed(r.childless) {
		r.childless = make(chan struct{})
	}
	r.mu.Unlock()

	// On failure ForkExec waits for the child itself. That the reaper may be faster is no harm.
	pid, err := syscall.ForkExec(path, argv, attr)

	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case r.forked <- struct{}{}:
	default:
	}
	status, early := r.unclaimed[pid]
	delete(r.unclaimed, pid)
	if r.starting--; r.starting == 0 {
		clear(r.unclaimed)
	}
	if err != nil {
		return 0, err
	}
	if early && syscall.Kill(pid, 0) == syscall.ESRCH {
		ended(status)
	} else {
		r.running[pid] = ended
	}
	return pid, nil
}

// IfRunning calls f if pid was started here and has not been reaped, and says whether it did. The pid cannot be given to
// another process meanwhile. f must not block.
func (r *Reaper) IfRunning(pid int, f func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.running[pid]; !ok {
		return false
	}
	f()
	return true
}

// Childless returns a channel that is closed when there is no child. For PID 1 this means that no other process is left.
func (r *Reaper) Childless() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.childless
}

func (r *Reaper) noteChildless() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.starting == 0 && !isClosed(r.childless) {
		close(r.childless)
	}
}

// reap collects all that have ended. A pid becomes free for others only here, under the lock.
func (r *Reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if ended, ok := r.running[pid]; ok {
			delete(r.running, pid)
			ended(status)
		} else if r.starting > 0 {
			r.unclaimed[pid] = status
		}
	}
}

// waitAny blocks until a child has ended, and leaves it to be reaped.
func waitAny() error {
	const (
		pAll    = 0
		wExited = 4
		wNoWait = 0x1000000
	)
	_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, pAll, 0, 0, wExited|wNoWait, 0, 0)
	if errno == 0 || errno == syscall.EINTR {
		return nil
	}
	return errno
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
