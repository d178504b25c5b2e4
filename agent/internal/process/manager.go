package process

import (
	"cmp"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Spec says what to run. Exactly one of Argv and Shell is set.
type Spec struct {
	Argv    []string
	Shell   *string           // run by /bin/sh -c
	Env     map[string]string // added to the account's and the guest's
	Cwd     string            // absolute; empty means the account's home, or / where that cannot be entered
	User    string            // as Accounts.Lookup reads it; empty means root
	Stdin   bool              // a pipe, not /dev/null
	Timeout time.Duration     // none if zero
}

// Manager starts commands and knows those that have not ended.
type Manager struct {
	reaper   *Reaper
	cgroups  *Cgroups // nil without cgroup v2
	accounts Accounts

	mu      sync.Mutex
	env     map[string]string
	running map[string]*Process
	last    int
	stopped bool
}

// NewManager returns a manager; reaper.Run must be running. cgroups may be nil.
func NewManager(reaper *Reaper, cgroups *Cgroups, accounts Accounts) *Manager {
	return &Manager{reaper: reaper, cgroups: cgroups, accounts: accounts, running: map[string]*Process{}}
}

// SetEnv replaces the environment that later commands start with.
func (m *Manager) SetEnv(env map[string]string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.env = env
}

// Stop makes every later Start fail: the guest is going down.
func (m *Manager) Stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stopped = true
}

// Get returns a command that has not ended.
func (m *Manager) Get(id string) (*Process, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p, ok := m.running[id]; ok {
		return p, nil
	}
	return nil, noSuchProcess(id)
}

// List returns the commands that have not ended, oldest first.
func (m *Manager) List() []*Process {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.SortedFunc(maps.Values(m.running), func(a, b *Process) int { return a.Started.Compare(b.Started) })
}

// Start runs a command. The caller reads its outputs until io.EOF and then calls Release, even if it does not want them.
// An *Error says, with the code that the host is told, why the command cannot run.
func (m *Manager) Start(spec Spec) (*Process, error) {
	account, err := m.accounts.Lookup(cmp.Or(spec.User, "root"))
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	m.last++
	id, guest, stopped := "p"+strconv.Itoa(m.last), m.env, m.stopped
	m.mu.Unlock()
	if stopped {
		return nil, fail(Internal, "the guest is powering off")
	}
	if err := CheckEnv(spec.Env); err != nil {
		return nil, err
	}
	env := environment(account, guest, spec.Env)
	argv := spec.Argv
	if spec.Shell != nil {
		argv = []string{"/bin/sh", "-c", *spec.Shell}
		if executable(argv[0]) != nil {
			return nil, fail(NoShell, "the image has no /bin/sh; give argv")
		}
	}
	cwd, err := workingDirectory(account, spec.Cwd)
	if err != nil {
		return nil, err
	}
	paths, err := resolve(account, argv[0], cwd, env["PATH"])
	if err != nil {
		return nil, err
	}

	p := &Process{ID: id, Argv: argv, User: cmp.Or(spec.User, "root"), reaper: m.reaper, done: make(chan struct{}), users: 1}
	attr := &syscall.ProcAttr{Dir: cwd, Env: environ(env), Sys: &syscall.SysProcAttr{Setpgid: true, Credential: credential(account)}}
	if err := m.equip(p, attr, spec, paths); err != nil {
		p.discard()
		return nil, err
	}
	return p, nil
}

// equip gives the command its streams and its cgroup, and starts it. On failure the caller discards what it has got by then.
func (m *Manager) equip(p *Process, attr *syscall.ProcAttr, spec Spec, paths []string) (err error) {
	defer func() {
		for _, fd := range attr.Files {
			syscall.Close(int(fd)) // the child has its own
		}
	}()
	if err := p.openStreams(attr, spec.Stdin); err != nil {
		return err
	}
	if m.cgroups != nil {
		if p.group, err = m.cgroups.New(p.ID); err != nil {
			return err
		}
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(p.group.dir.Fd())
	}
	p.Started = time.Now()
	return m.launch(p, paths, attr, spec.Timeout)
}

// launch tries the files that the program's name may mean, as execvp(3) does.
func (m *Manager) launch(p *Process, paths []string, attr *syscall.ProcAttr, timeout time.Duration) (err error) {
	for _, file := range paths {
		p.PID, err = m.reaper.Start(file, p.Argv, attr, func(status syscall.WaitStatus) {
			p.ended(status)
			m.forget(p)
		})
		if err == nil {
			break
		}
		if err = execError(file, err); err != nil && CodeOf(err) != NotExecutable {
			return err
		}
	}
	if err != nil {
		return err
	}
	m.mu.Lock()
	if !isClosed(p.done) {
		m.running[p.ID] = p
	}
	m.mu.Unlock()
	if timeout > 0 {
		// A timer that fires late finds the command ended, and does nothing.
		timer := time.AfterFunc(timeout, p.expire)
		go func() { <-p.done; timer.Stop() }()
	}
	return nil
}

func (m *Manager) forget(p *Process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.running, p.ID)
}

// openStreams makes the pipes, and the child's descriptors 0, 1 and 2 in attr.Files.
func (p *Process) openStreams(attr *syscall.ProcAttr, withStdin bool) (err error) {
	var fd int
	if withStdin {
		p.stdin, fd, err = newInput()
	} else if fd, err = syscall.Open("/dev/null", syscall.O_RDWR|syscall.O_CLOEXEC, 0); err != nil {
		err = &os.PathError{Op: "open", Path: "/dev/null", Err: err}
	}
	if err != nil {
		return err
	}
	attr.Files = append(attr.Files, uintptr(fd))
	if p.Stdout, fd, err = newOutput("stdout"); err != nil {
		return err
	}
	attr.Files = append(attr.Files, uintptr(fd))
	if p.Stderr, fd, err = newOutput("stderr"); err != nil {
		return err
	}
	attr.Files = append(attr.Files, uintptr(fd))
	return nil
}

// discard frees what a command that did not start has taken.
func (p *Process) discard() {
	p.stdin.close()
	for _, output := range []*Output{p.Stdout, p.Stderr} {
		if output != nil {
			output.file.Close()
		}
	}
	if p.group != nil {
		p.group.Release()
	}
}

// credential sets the identity even where it is root's, for the sake of the supplementary groups. An agent that is not root
// (in a test) can only run commands as itself.
func credential(account Account) *syscall.Credential {
	if syscall.Geteuid() != 0 {
		return nil
	}
	return &syscall.Credential{Uid: account.UID, Gid: account.GID, Groups: account.Groups}
}

func workingDirectory(account Account, asked string) (string, error) {
	if asked == "" {
		var err error
		as(account, func() { err = enter(account.Home) })
		if err != nil || !path.IsAbs(account.Home) {
			return "/", nil
		}
		return account.Home, nil
	}
	if !path.IsAbs(asked) {
		return "", fail(BadRequest, "cwd: "+quote(asked)+" is not absolute")
	}
	return asked, nil
}
