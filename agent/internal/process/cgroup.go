package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// eventsBytes is more than a file of events holds.
const eventsBytes = 512

// Cgroups creates a cgroup for each command, below one directory.
//
// It works with descriptors instead of paths, so that a guest that unmounts or covers
// /sys/fs/cgroup has no effect on it.
type Cgroups struct {
	dir    *os.File
	limits CommandLimits // of each new cgroup; see Limit

	mu    sync.Mutex
	left  []string // cgroups of ended commands with live descendants
	spare *Cgroup  // prepared for the next command, or nil
}

// OpenCgroups creates the directory name in the cgroup v2 hierarchy at mount. It fails if no such
// hierarchy is mounted there.
func OpenCgroups(mount, name string) (*Cgroups, error) {
	if _, err := os.Stat(filepath.Join(mount, "cgroup.controllers")); err != nil {
		return nil, fmt.Errorf("no cgroup v2 at %s: %w", mount, err)
	}
	path := filepath.Join(mount, name)
	if err := os.Mkdir(path, 0o755); err != nil && !os.IsExist(err) {
		return nil, err
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &Cgroups{dir: dir}, nil
}

// Cgroup holds the processes of one command.
type Cgroup struct {
	all    *Cgroups
	name   string
	dir    *os.File
	events *os.File // memory.events; nil without a memory controller
}

// New returns an empty cgroup called name. If the guest has taken that name, it appends a number.
func (c *Cgroups) New(name string) (*Cgroup, error) {
	c.Sweep()
	c.mu.Lock()
	spare := c.spare
	c.spare = nil
	c.mu.Unlock()
	if spare != nil && spare.name == name {
		return spare, nil
	}
	if spare != nil {
		spare.Release()
	}
	return c.create(name)
}

// Prepare creates the cgroup that New(name) will return, so that the next command starts sooner.
func (c *Cgroups) Prepare(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.spare == nil {
		c.spare, _ = c.create(name)
	}
}

func (c *Cgroups) create(name string) (*Cgroup, error) {
	dir, free := int(c.dir.Fd()), name
	err := syscall.Mkdirat(dir, free, 0o755)
	for i := 2; err == syscall.EEXIST && i < 1000; i++ {
		free = name + "-" + strconv.Itoa(i)
		err = syscall.Mkdirat(dir, free, 0o755)
	}
	if err != nil {
		return nil, &os.PathError{Op: "make cgroup", Path: free, Err: err}
	}
	fd, err := syscall.Openat(dir, free, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		c.remove(free)
		return nil, &os.PathError{Op: "open cgroup", Path: free, Err: err}
	}
	group := &Cgroup{all: c, name: free, dir: os.NewFile(uintptr(fd), free)}
	group.limit(c.limits)
	return group, nil
}

// Sweep removes the cgroups of ended commands whose last descendant has ended.
func (c *Cgroups) Sweep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := c.left[:0]
	for _, name := range c.left {
		if c.remove(name) == syscall.EBUSY {
			kept = append(kept, name)
		}
	}
	c.left = kept
}

func (c *Cgroups) remove(name string) error {
	const atRemoveDir = 0x200
	path, err := syscall.BytePtrFromString(name)
	if err != nil {
		return err
	}
	_, _, errno := syscall.Syscall(syscall.SYS_UNLINKAT, c.dir.Fd(), uintptr(unsafe.Pointer(path)), atRemoveDir)
	if errno != 0 {
		return errno
	}
	return nil
}

// Release removes the cgroup, or leaves it to a later Sweep if it holds processes. The cgroup must
// not be used afterwards.
func (g *Cgroup) Release() {
	g.dir.Close()
	g.events.Close()
	g.all.mu.Lock()
	defer g.all.mu.Unlock()
	if g.all.remove(g.name) == syscall.EBUSY {
		g.all.left = append(g.all.left, g.name)
	}
}

// Kill sends SIGKILL to every process in the cgroup. It reports whether that was final: without
// cgroup.kill (Linux before 5.14), processes may fork meanwhile, and Kill must be repeated until
// Empty.
func (g *Cgroup) Kill() (final bool) {
	if g.write("cgroup.kill", "1") == nil {
		return true
	}
	g.killEach()
	return false
}

// killEach kills the processes one by one.
func (g *Cgroup) killEach() {
	procs, _ := g.read("cgroup.procs", 64<<10)
	for _, field := range strings.Fields(procs) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 1 {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// Empty reports whether the cgroup holds no processes except zombies.
func (g *Cgroup) Empty() bool {
	events, err := g.read("cgroup.events", eventsBytes)
	return err != nil || strings.Contains(events, "populated 0")
}

// KillAll kills until the cgroup is empty or stop is closed.
func (g *Cgroup) KillAll(stop <-chan struct{}) {
	for wait := time.Millisecond; !g.Empty(); wait = min(2*wait, 20*time.Millisecond) {
		g.Kill()
		select {
		case <-time.After(wait):
		case <-stop:
			return
		}
	}
}

func (g *Cgroup) open(name string, flags int) (*os.File, error) {
	fd, err := syscall.Openat(int(g.dir.Fd()), name, flags|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "openat", Path: g.name + "/" + name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (g *Cgroup) write(name, text string) error {
	f, err := g.open(name, syscall.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}

// read returns at most the first size bytes of a file.
func (g *Cgroup) read(name string, size int) (string, error) {
	f, err := g.open(name, syscall.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, size)
	n, err := f.Read(b)
	if n > 0 {
		err = nil
	}
	return string(b[:n]), err
}
