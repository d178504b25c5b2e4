package process

import (
	"cmp"
	"maps"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// limits bounds what is kept. Tests use lower limits.
type limits struct {
	foreground, background int           // bytes of output of a session
	grace                  time.Duration // how long a session's output waits for a reader
	ended, endedBytes      int           // number of ended background sessions, and bytes of their output together
	living                 int           // number of ended background sessions with living descendants
}

var defaultLimits = limits{foreground: 128 << 10, background: 1 << 20, grace: 10 * time.Second, ended: 32, endedBytes: 8 << 20, living: 256}

// tidyDelay is the time between the end of a request and the removal of its cgroup, which takes some
// milliseconds in an emulated guest. It lets the response leave first; the guest then waits for the
// next request anyway.
const tidyDelay = 2 * time.Millisecond

// Manager starts commands and keeps their sessions.
type Manager struct {
	reaper   *Reaper
	cgroups  *Cgroups // nil without cgroup v2
	accounts Accounts
	limits   limits
	memory   *memory

	mu       sync.Mutex
	env      map[string]string
	sessions map[string]*Process
	kept     []*Process // ended background sessions, oldest first
	last     int
	stopped  bool

	starting sync.RWMutex // held for reading while a command starts, and for writing while all are frozen
	freezing sync.Mutex   // guards frozen
	frozen   bool
}

// NewManager returns a manager. reaper.Run must be running. cgroups may be nil.
func NewManager(reaper *Reaper, cgroups *Cgroups, accounts Accounts) *Manager {
	return &Manager{
		reaper: reaper, cgroups: cgroups, accounts: accounts, limits: defaultLimits, memory: newMemory(), sessions: map[string]*Process{},
	}
}

// SetEnv replaces the environment that later commands start with.
func (m *Manager) SetEnv(env map[string]string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.env = env
}

// Stop makes every later Start fail, because the guest is powering off.
func (m *Manager) Stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stopped = true
}

// Get returns a session.
func (m *Manager) Get(id string) (*Process, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sweep()
	if p, ok := m.sessions[id]; ok {
		return p, nil
	}
	return nil, noSuchProcess(id)
}

// List returns the sessions, oldest first.
func (m *Manager) List() []*Process {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sweep()
	return slices.SortedFunc(maps.Values(m.sessions), func(a, b *Process) int { return a.Started.Compare(b.Started) })
}

// Forget removes a session whose command has ended. Readers of its output continue.
func (m *Manager) Forget(p *Process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget(p)
}

func (m *Manager) forget(p *Process) {
	if m.sessions[p.ID] != p {
		return
	}
	delete(m.sessions, p.ID)
	m.kept = slices.DeleteFunc(m.kept, func(other *Process) bool { return other == p })
	p.Log.forget()
	p.release()
}

// Finish notes that the request of a foreground command has ended. The session is forgotten when
// its last process has ended.
func (m *Manager) Finish(p *Process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p.finished = true
	p.Log.forget()
	time.AfterFunc(tidyDelay, m.tidy)
}

// tidy releases what ended sessions no longer need, and creates the cgroup of the next command, which
// then starts sooner.
func (m *Manager) tidy() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sweep()
	if m.cgroups != nil {
		m.cgroups.Prepare(sessionID(m.last + 1))
	}
}

// sweep releases the cgroups of sessions without processes, and forgets the finished ones. It is
// called before sessions are looked up, so that no process has to be watched.
func (m *Manager) sweep() {
	for _, p := range m.sessions {
		if p.Lives() {
			continue
		}
		p.release()
		if p.finished {
			m.forget(p)
		}
	}
}

// keepEnded adds a session that has ended to those that are kept, and forgets the oldest beyond the
// limits.
func (m *Manager) keepEnded(p *Process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !p.Background || m.sessions[p.ID] != p {
		return
	}
	m.kept = append(m.kept, p)
	total := 0
	for _, p := range m.kept {
		total += p.Log.size()
	}
	for _, p := range slices.Clone(m.kept) {
		if len(m.kept) <= m.limits.ended && total <= min(m.limits.endedBytes, m.memory.total()/2) {
			break
		}
		if p.Lives() && len(m.kept) <= m.limits.living {
			continue
		}
		total -= p.Log.size()
		m.forget(p)
	}
}

func sessionID(number int) string { return "p" + strconv.Itoa(number) }

// Start runs a command, and returns its session and a reader of all its output. When a foreground
// request has ended, the caller calls Finish, or Kill and Forget. If the command cannot be started,
// the error is an *Error.
func (m *Manager) Start(spec Spec) (*Process, *Reader, error) {
	m.mu.Lock()
	m.last++
	id, guest, stopped := sessionID(m.last), m.env, m.stopped
	m.mu.Unlock()
	if stopped {
		return nil, nil, fail(PoweringOff, "the guest is powering off")
	}
	plan, err := m.plan(spec, guest)
	if err != nil {
		return nil, nil, err
	}
	p := &Process{
		ID: id, Argv: shortened(plan.argv), User: cmp.Or(spec.User, "root"), Background: spec.Background, Stdin: spec.Stdin && spec.Terminal == nil,
		restoreSignal: spec.RestoreSignal, reaper: m.reaper, done: make(chan struct{}), users: 1,
	}
	// A session of its own has its own share of CPU time (autogroup), even while the agent is busy
	// with a transfer.
	sys := &syscall.SysProcAttr{Setsid: true, Credential: credential(plan.account)}
	attr := &syscall.ProcAttr{Dir: plan.cwd, Env: environ(plan.env), Sys: sys}
	m.starting.RLock()
	err = m.createStreamsAndStart(p, attr, spec, plan)
	m.starting.RUnlock()
	if err != nil {
		p.discard()
		return nil, nil, err
	}

	p.Log.addWriters(len(p.sources))
	reader, _ := p.Attach(0, 0)
	m.mu.Lock()
	m.sessions[p.ID] = p
	m.mu.Unlock()
	go func() {
		p.pump()
		p.Log.finish()
		if p.timer != nil {
			p.timer.Stop()
		}
		m.keepEnded(p)
		if p.Background {
			m.tidy()
		}
	}()
	return p, reader, nil
}

// createStreamsAndStart creates the command's streams and its cgroup, and starts it. On failure the caller calls
// discard.
func (m *Manager) createStreamsAndStart(p *Process, attr *syscall.ProcAttr, spec Spec, plan plan) (err error) {
	var own []int // the child's descriptors, closed in the agent
	defer func() {
		for _, fd := range own {
			syscall.Close(fd)
		}
	}()
	if spec.Terminal != nil {
		own, err = m.openTerminal(p, *spec.Terminal, plan.account)
		attr.Sys.Setctty = true
	} else {
		own, err = p.openPipes(spec.Stdin)
	}
	if err != nil {
		return err
	}
	for i := range 3 {
		attr.Files = append(attr.Files, uintptr(own[min(i, len(own)-1)]))
	}
	most, grace := m.limits.foreground, time.Duration(0)
	if spec.Background {
		most, grace = m.limits.background, m.limits.grace
	}
	if p.Log, err = newLog(m.memory, most, grace); err != nil {
		return err
	}
	if m.cgroups != nil {
		if p.group, err = m.cgroups.New(p.ID); err != nil {
			return err
		}
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(p.group.dir.Fd())
	}
	p.Started = time.Now()
	if err := m.launch(p, plan, attr); err != nil {
		return err
	}
	if spec.Timeout > 0 {
		p.timer = time.AfterFunc(spec.Timeout, p.expire) // a timer that fires late finds the command ended and does nothing
	}
	return nil
}

// launch tries the candidate files of the program, as execvp(3) does.
func (m *Manager) launch(p *Process, plan plan, attr *syscall.ProcAttr) (err error) {
	for _, file := range plan.paths {
		p.PID, err = m.reaper.Start(file, plan.argv, attr, p.ended)
		if err == nil {
			return nil
		}
		if err = execError(file, err); CodeOf(err) != NotExecutable {
			return err
		}
	}
	return err
}

// openTerminal creates the terminal, and returns the child's descriptor for it.
func (m *Manager) openTerminal(p *Process, size Size, owner Account) (own []int, err error) {
	group, findErr := findGroup(m.accounts.lines("etc/group", 4), "tty")
	terminal, fd, err := newTerminal(size, owner, group, findErr == nil)
	if err != nil {
		return nil, err
	}
	p.terminal, p.sources, p.stdin = terminal, []*source{terminal}, newInput(terminal.file, true)
	p.size.Store(&size)
	return []int{fd}, nil
}

// openPipes creates the pipes, and returns the child's descriptors 0, 1 and 2.
func (p *Process) openPipes(withStdin bool) (own []int, err error) {
	var fd int
	if withStdin {
		p.stdin, fd, err = newStdin()
	} else if fd, err = syscall.Open("/dev/null", syscall.O_RDWR|syscall.O_CLOEXEC, 0); err != nil {
		err = &os.PathError{Op: "open", Path: "/dev/null", Err: err}
	}
	if err != nil {
		return nil, err
	}
	own = append(own, fd)
	for _, name := range []string{"stdout", "stderr"} {
		output, fd, err := newOutput(name)
		if err != nil {
			return own, err
		}
		p.sources, own = append(p.sources, output), append(own, fd)
	}
	return own, nil
}

// discard releases the resources of a command that was not started.
func (p *Process) discard() {
	p.stdin.close()
	for _, source := range p.sources {
		source.file.Close()
	}
	if p.Log != nil {
		p.Log.forget()
	}
	if p.group != nil {
		p.group.Release()
	}
}

// credential returns the identity to set. It is set even for root, because of the supplementary
// groups. An agent that is not root, as in tests, runs commands as itself.
func credential(account Account) *syscall.Credential {
	if syscall.Geteuid() != 0 {
		return nil
	}
	return &syscall.Credential{Uid: account.UID, Gid: account.GID, Groups: account.Groups}
}
