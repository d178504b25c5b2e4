package process

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

var (
	reaper  = NewReaper()
	cgroups *Cgroups // nil if this machine has no usable cgroup v2
)

// TestMain makes the test a reaper of orphans, like PID 1. Tests must not use os/exec: the reaper
// would take its statuses.
func TestMain(m *testing.M) {
	const prSetChildSubreaper = 36
	syscall.Syscall(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0)
	for fd := 3; fd < 1024; fd++ { // descriptors of `go test` itself must not be inherited
		syscall.CloseOnExec(fd)
	}
	go reaper.Run()
	name := fmt.Sprintf("squib-agent-test-%d", os.Getpid())
	mount := cgroupMount()
	if mount != "" {
		cgroups, _ = OpenCgroups(mount, name)
	}
	code := m.Run()
	if cgroups != nil {
		os.WriteFile(mount+"/"+name+"/cgroup.kill", []byte("1"), 0)
		for range 1000 { // processes that tests leave in the background
			if cgroups.Sweep(); len(cgroups.left) == 0 {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if err := os.Remove(mount + "/" + name); err != nil {
			fmt.Println("left behind:", err)
			code = 1
		}
	}
	os.Exit(code)
}

func cgroupMount() string {
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[2] == "cgroup2" {
			return fields[1]
		}
	}
	return ""
}

// newManager returns a manager with a fixture of accounts.
func newManager(t *testing.T, groups *Cgroups) *Manager {
	t.Helper()
	root := t.TempDir()
	write(t, root+"/etc/passwd", "root:x:0:0:root:/:/bin/sh\ndaemon:x:1:1::/usr/sbin:/usr/sbin/nologin\n"+
		fmt.Sprintf("me:x:%d:%d::/:/bin/sh\n", os.Getuid(), os.Getgid()), 0o644)
	write(t, root+"/etc/group", "root:x:0:\n", 0o644)
	return NewManager(reaper, groups, Accounts{root})
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(path[:strings.LastIndex(path, "/")], 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func sh(script string) Spec { return Spec{Shell: &script, User: "me"} }

// running is a session with its first reader.
type running struct {
	*Process
	reader  *Reader
	streams [2][]byte // read but not yet returned
	offsets [2]int64
}

func start(t *testing.T, m *Manager, spec Spec) *running {
	t.Helper()
	p, reader, err := m.Start(spec)
	if err != nil {
		t.Fatalf("start %v: %v", spec, err)
	}
	r := &running{Process: p, reader: reader}
	t.Cleanup(func() {
		p.Kill()
		waitDone(t, p)
		m.Forget(p)
		r.close()
		eventually(t, "the output is given back", func() bool { return p.Log.gone() })
	})
	return r
}

// attach returns the same session with another reader.
func (r *running) attach(t *testing.T, stdout, stderr int64) *running {
	t.Helper()
	reader, err := r.Attach(stdout, stderr)
	if err != nil {
		t.Fatal(err)
	}
	other := &running{Process: r.Process, reader: reader, offsets: [2]int64{-1, -1}}
	t.Cleanup(other.close)
	return other
}

func (r *running) close() {
	if r.reader != nil {
		r.reader.Close()
		r.reader = nil
	}
}

// read waits for output and reads up to the given amount. It returns false at the end.
func (r *running) read(t *testing.T, most int) bool {
	t.Helper()
	p := make([]byte, most)
	for timeout := time.After(10 * time.Second); ; {
		s, offset, n, err := r.reader.Next(p)
		if n > 0 {
			if r.offsets[s] < 0 {
				r.offsets[s] = offset
			}
			if offset != r.offsets[s] {
				t.Fatalf("stream %d: offset %d, want %d", s, offset, r.offsets[s])
			}
			r.offsets[s] += int64(n)
			r.streams[s] = append(r.streams[s], p[:n]...)
			return true
		}
		if err == io.EOF {
			return false
		}
		select {
		case <-r.reader.Ready():
		case <-timeout:
			t.Fatalf("no more output after %.200q", r.streams)
		}
	}
}

// line returns the next line of a stream.
func (r *running) line(t *testing.T, s Stream) string {
	t.Helper()
	for {
		if line, rest, ok := bytes.Cut(r.streams[s], []byte("\n")); ok {
			r.streams[s] = rest
			return string(line)
		}
		if !r.read(t, 100) {
			t.Fatalf("it ended after %q", r.streams)
		}
	}
}

// until reads until stdout contains text, and returns everything through it.
func (r *running) until(t *testing.T, text string) string {
	t.Helper()
	for {
		if before, rest, ok := bytes.Cut(r.streams[Stdout], []byte(text)); ok {
			r.streams[Stdout] = rest
			return string(before) + text
		}
		if !r.read(t, 4096) {
			t.Fatalf("it ended without %q: %.2000q", text, r.streams)
		}
	}
}

// finish reads to the end and returns the remaining output.
func finish(t *testing.T, r *running) (stdout, stderr string) {
	t.Helper()
	for r.read(t, 64<<10) {
	}
	waitDone(t, r.Process)
	r.close()
	return string(r.streams[Stdout]), string(r.streams[Stderr])
}

func waitDone(t *testing.T, p *Process) {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the command does not end")
	}
}

// run runs a command to its end.
func run(t *testing.T, m *Manager, spec Spec) (stdout, stderr string, status Status) {
	t.Helper()
	p := start(t, m, spec)
	stdout, stderr = finish(t, p)
	return stdout, stderr, p.Status()
}

// gone reports whether the log's memory was freed.
func (l *Log) gone() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ring == nil
}

// eventually waits for a condition without an event.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}

func gone(pid string) func() bool {
	return func() bool {
		_, err := os.Stat("/proc/" + pid)
		return os.IsNotExist(err)
	}
}

// kill kills the process whose ID a command has printed. Anything else must not become the process
// ID 0: that would kill the whole process group of the tests.
func kill(t *testing.T, pid string) {
	t.Helper()
	n, err := strconv.Atoi(pid)
	if err != nil || n <= 1 {
		t.Fatalf("%q is not a process ID", pid)
	}
	syscall.Kill(n, syscall.SIGKILL)
}
