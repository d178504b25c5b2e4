package process

import (
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

var (
	reaper  = NewReaper()
	cgroups *Cgroups // nil where this machine has no cgroup v2 that we may use
)

// TestMain makes the test a reaper of orphans, as PID 1 is one. Tests must not use os/exec, whose statuses the reaper would take.
func TestMain(m *testing.M) {
	const prSetChildSubreaper = 36
	syscall.Syscall(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0)
	for fd := 3; fd < 1024; fd++ { // what `go test` itself was given is not the agent's
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
		for range 1000 { // the processes that tests leave in the background
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

// newManager returns a manager with the image's accounts in a fixture.
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

func start(t *testing.T, m *Manager, spec Spec) *Process {
	t.Helper()
	p, err := m.Start(spec)
	if err != nil {
		t.Fatalf("start %v: %v", spec, err)
	}
	t.Cleanup(func() {
		p.Kill()
		waitDone(t, p)
		if p.use() { // not released by finish
			p.unuse()
			finish(t, p)
		}
	})
	return p
}

// finish reads both outputs to their ends, releases the process, and returns them.
func finish(t *testing.T, p *Process) (stdout, stderr string) {
	t.Helper()
	type result struct {
		which int
		text  []byte
	}
	results := make(chan result, 2)
	for i, output := range []*Output{p.Stdout, p.Stderr} {
		go func() {
			text, _ := io.ReadAll(output)
			results <- result{i, text}
		}()
	}
	var texts [2]string
	for range 2 {
		select {
		case r := <-results:
			texts[r.which] = string(r.text)
		case <-time.After(10 * time.Second):
			t.Fatal("the command's output does not end")
		}
	}
	waitDone(t, p)
	p.Release()
	return texts[0], texts[1]
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

// line reads one line of a command's output.
func line(t *testing.T, o *Output) string {
	t.Helper()
	var got []byte
	for one := make([]byte, 1); ; {
		if _, err := o.Read(one); err != nil {
			t.Fatalf("after %q: %v", got, err)
		}
		if one[0] == '\n' {
			return string(got)
		}
		got = append(got, one[0])
	}
}

// eventually waits for a state that no event announces.
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
