package process

import (
	"sync"
	"syscall"
)

// Reaper is the only caller of wait4(2) in the agent.
//
// As PID 1 the agent inherits every orphan in the guest. It must reap them without taking the
// status of its own commands. Therefore one goroutine reaps all children, and passes each status to
// the function registered for its process ID.
//
// The lock is not held across fork and exec, which may block on the program's filesystem. Statuses
// without a registered function are kept while a fork is in progress. A kept status might belong to
// an orphan that had the same process ID earlier. It therefore counts only if no process has this
// ID any more: a child that was not reaped still has its ID.
type Reaper struct {
	mu        sync.Mutex
	running   map[int]func(syscall.WaitStatus)
	starting  int
	unclaimed map[int]syscall.WaitStatus
	forked    chan struct{} // signals that there may be a new child
	childless chan struct{} // closed while there are no children
}

// NewReaper returns a reaper. Run must be called.
func NewReaper() *Reaper {
	return &Reaper{
		running:   map[int]func(syscall.WaitStatus){},
		unclaimed: map[int]syscall.WaitStatus{},
		forked:    make(chan struct{}, 1),
		childless: make(chan struct{}),
	}
}

// Run reaps forever. It blocks in waitid(2), which takes a thread but no signal handling.
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

// Start forks and executes as syscall.ForkExec does. When the process ends, ended is called once,
// from another goroutine, with the reaper's lock held, and possibly before Start returns.
func (r *Reaper) Start(path string, argv []string, attr *syscall.ProcAttr, ended func(syscall.WaitStatus)) (int, error) {
	r.mu.Lock()
	r.starting++
	if isClosed(r.childless) {
		r.childless = make(chan struct{})
	}
	r.mu.Unlock()

	// On failure ForkExec waits for the child itself. It does no harm if the reaper is faster.
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

// IfRunning calls f and returns true if pid was started by Start and was not reaped. The process ID
// is not reused before f returns. f must not block.
func (r *Reaper) IfRunning(pid int, f func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.running[pid]; !ok {
		return false
	}
	f()
	return true
}

// Childless returns a channel that is closed when there are no children. For PID 1 this means that
// no other process is left.
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

// reap collects all children that have ended. Only here, under the lock, does a process ID become
// free.
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

// waitAny blocks until a child has ended. It does not reap it.
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
