package process

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestLargeOutputIsExact(t *testing.T) {
	const size = 40 << 20
	p := start(t, newManager(t, cgroups), Spec{Argv: []string{"head", "-c", strconv.Itoa(size), "/dev/zero"}, User: "me"})
	out, _ := finish(t, p)
	if len(out) != size || sha256.Sum256([]byte(out)) != sha256.Sum256(make([]byte, size)) {
		t.Errorf("%d bytes", len(out))
	}
}

// most is the maximum output between a foreground command and a reader: what the log and a pipe
// hold.
const most = 128<<10 + ringSlack + 64<<10

// A reader that stops reading blocks the command.
func TestSlowReaderBlocksTheCommand(t *testing.T) {
	p := start(t, newManager(t, cgroups), sh("exec yes"))
	pid := strconv.Itoa(p.PID)
	written := func() string {
		io, _ := os.ReadFile("/proc/" + pid + "/io")
		_, after, _ := strings.Cut(string(io), "wchar: ")
		count, _, _ := strings.Cut(after, "\n")
		return count
	}
	eventually(t, "yes sleeps", func() bool {
		stat, _ := os.ReadFile("/proc/" + pid + "/stat")
		return strings.Contains(string(stat), "(yes) S ")
	})
	if n, err := strconv.Atoi(written()); err == nil && n > 2*most {
		t.Errorf("%d bytes were taken from it unread", n)
	}
	p.Kill()
	waitDone(t, p.Process)
}

func TestBackgroundDescendantDoesNotDelayTheEnd(t *testing.T) {
	m := newManager(t, cgroups)
	dir := t.TempDir()
	os.Chmod(dir, 0o777)
	// A descendant keeps both pipes open, waits for a signal, writes more than a pipe holds, and
	// reports whether it could.
	p := start(t, m, sh(fmt.Sprintf("echo now; mkfifo %[1]s/go; (read x < %[1]s/go; head -c 1000000 /dev/zero && echo fine > %[1]s/done) & exit 7", dir)))
	out, _ := finish(t, p)
	if out != "now\n" || p.Status().ExitCode != 7 {
		t.Fatalf("got %q, %+v", out, p.Status())
	}
	write(t, dir+"/go", "\n", 0o600)
	eventually(t, "it wrote without SIGPIPE and without blocking", func() bool {
		text, _ := os.ReadFile(dir + "/done")
		return string(text) == "fine\n"
	})
}

// All output of the command itself arrives, even if it is read only after its end.
func TestOutputLeftInThePipeIsRead(t *testing.T) {
	p := start(t, newManager(t, cgroups), sh("head -c 60000 /dev/zero; head -c 50000 /dev/zero >&2; sleep 100 &"))
	waitDone(t, p.Process)
	stdout, stderr := finish(t, p)
	if len(stdout) != 60000 || len(stderr) != 50000 {
		t.Errorf("%d and %d bytes", len(stdout), len(stderr))
	}
}

// A descendant that writes forever does not prolong draining.
func TestDrainIsBounded(t *testing.T) {
	m := newManager(t, cgroups)
	p := start(t, m, sh("yes & echo $! >&2; exit 0"))
	pid := p.line(t, Stderr)
	waitDone(t, p.Process)
	out, _ := finish(t, p)
	if len(out) > 2*most {
		t.Errorf("%d bytes", len(out))
	}
	kill(t, pid)
	eventually(t, "yes is reaped", gone(pid))
}

func TestReleaseLeaksNothing(t *testing.T) {
	m := newManager(t, cgroups)
	run(t, m, sh("true"))
	count := func() int { fds, _ := os.ReadDir("/proc/self/fd"); return len(fds) }
	before := count()
	for range 10 {
		p := start(t, m, sh("(sleep 0.02 &); echo x"))
		finish(t, p)
		m.Finish(p.Process)
	}
	eventually(t, "all descriptors are closed", func() bool { m.List(); return count() <= before })
}

func TestTimeoutKillsTheGroup(t *testing.T) {
	for name, groups := range map[string]*Cgroups{"cgroup": cgroups, "process group": nil} {
		t.Run(name, func(t *testing.T) {
			if name == "cgroup" && groups == nil {
				t.Skip("no cgroup v2 here")
			}
			spec := sh("trap '' TERM HUP; sleep 1000 & echo $!; wait; wait")
			spec.Timeout = 100 * time.Millisecond
			p := start(t, newManager(t, groups), spec)
			child := p.line(t, Stdout)
			finish(t, p)
			if s := p.Status(); s.Signal != 9 || !s.TimedOut || s.Duration < spec.Timeout {
				t.Errorf("got %+v", s)
			}
			eventually(t, "the child is gone", gone(child))
		})
	}
}

func TestCommandThatEndsInTimeIsNotTimedOut(t *testing.T) {
	spec := sh("exit 4")
	spec.Timeout = time.Hour
	if _, _, status := run(t, newManager(t, cgroups), spec); status.TimedOut || status.ExitCode != 4 {
		t.Errorf("got %+v", status)
	}
}

func TestKillReachesWhatLeftTheProcessGroup(t *testing.T) {
	if cgroups == nil {
		t.Skip("no cgroup v2 here")
	}
	p := start(t, newManager(t, cgroups), sh("setsid sh -c 'echo $$; sleep 1000; true' & wait"))
	child := p.line(t, Stdout)
	if err := p.KillAndWait(context.Background()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the child is gone", gone(child))
	finish(t, p)
}

// The fallback for kernels before 5.14 kills as thoroughly, only slower.
func TestKillWithoutCgroupKill(t *testing.T) {
	if cgroups == nil {
		t.Skip("no cgroup v2 here")
	}
	p := start(t, newManager(t, cgroups), sh("for i in 1 2 3 4 5 6; do setsid sleep 1000 & done; echo ready; wait"))
	p.line(t, Stdout)
	p.retainGroup()
	defer p.releaseGroup()
	for i := 0; !p.group.Empty(); i++ {
		if i > 10000 {
			t.Fatal("it does not become empty")
		}
		p.group.killEach()
	}
	finish(t, p)
}

func TestNormalEndKillsNothing(t *testing.T) {
	m := newManager(t, cgroups)
	p := start(t, m, sh("sleep 1000 & echo $!"))
	out, _ := finish(t, p)
	m.Finish(p.Process)
	pid := strings.TrimSpace(out)
	p.Kill() // too late: the command has ended
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	if gone(pid)() {
		t.Error("the descendant was killed")
	}
	syscall.Kill(n, syscall.SIGKILL)
	eventually(t, "it is reaped", gone(pid))
	if cgroups != nil {
		eventually(t, "its cgroup is removed", func() bool {
			m.List()
			_, err := os.Stat(cgroups.dir.Name() + "/" + p.group.name)
			return os.IsNotExist(err)
		})
	}
}

func TestKillWhileTheOutputIsBlocked(t *testing.T) {
	spec := sh("exec yes")
	spec.Timeout = 50 * time.Millisecond
	p := start(t, newManager(t, cgroups), spec)
	waitDone(t, p.Process) // no reader is left
	if !p.Status().TimedOut {
		t.Errorf("got %+v", p.Status())
	}
	if out, _ := finish(t, p); !strings.HasPrefix(out, "y\ny\n") {
		t.Errorf("got %.10q", out)
	}
}

func TestSignalReachesTheProcessGroup(t *testing.T) {
	p := start(t, newManager(t, cgroups), sh("trap 'echo parent; exit 5' USR1; sh -c 'trap \"echo child; exit\" USR1; echo ready; while :; do sleep 0.01; done' & while :; do sleep 0.01; done"))
	p.line(t, Stdout)
	if err := p.Signal(int(syscall.SIGUSR1)); err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{p.line(t, Stdout): true}
	waitDone(t, p.Process)
	if p.Status().ExitCode != 5 && !got["child"] {
		t.Errorf("got %+v, %v", p.Status(), got)
	}
}

func TestStdin(t *testing.T) {
	spec := sh("exec cat")
	spec.Stdin = true
	p := start(t, newManager(t, cgroups), spec)
	data := make([]byte, 3<<20)
	rand.Read(data)
	go func() {
		for i, part := range [][]byte{data[:1<<20], data[1<<20 : 1<<20], data[1<<20:]} {
			n, err := p.WriteStdin(context.Background(), bytes.NewReader(part), i == 2)
			if err != nil || n != int64(len(part)) {
				t.Errorf("wrote %d: %v", n, err)
			}
		}
	}()
	out, _ := finish(t, p)
	if out != string(data) {
		t.Errorf("%d bytes came back", len(out))
	}
	if _, err := p.WriteStdin(context.Background(), strings.NewReader("x"), false); CodeOf(err) != StdinClosed {
		t.Errorf("after the end: %v", err)
	}
}

func TestStdinThatIsNotReadIsClosed(t *testing.T) {
	m := newManager(t, cgroups)
	p := start(t, m, sh("exec sleep 100"))
	if _, err := p.WriteStdin(context.Background(), strings.NewReader("x"), false); CodeOf(err) != StdinClosed {
		t.Errorf("/dev/null: %v", err)
	}
	spec := sh("exec <&-; echo closed; exec sleep 100")
	spec.Stdin = true
	p = start(t, m, spec)
	p.line(t, Stdout)
	if _, err := p.WriteStdin(context.Background(), strings.NewReader("x"), false); CodeOf(err) != StdinClosed {
		t.Errorf("closed by the command: %v", err)
	}
}

func TestStdinWriteEndsWithRequestAndWithProcess(t *testing.T) {
	spec := sh("exec sleep 100")
	spec.Stdin = true
	p := start(t, newManager(t, cgroups), spec)
	more := func() io.Reader { return bytes.NewReader(make([]byte, 1<<20)) }
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := p.WriteStdin(ctx, more(), false); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled request: %v", err)
	}
	time.AfterFunc(20*time.Millisecond, p.Kill)
	if _, err := p.WriteStdin(context.Background(), more(), false); CodeOf(err) != StdinClosed {
		t.Errorf("a killed process: %v", err)
	}
}

func TestEachCommandLeadsASession(t *testing.T) {
	out, _, _ := run(t, newManager(t, cgroups), sh("cut -d' ' -f1,5,6 /proc/$$/stat"))
	if ids := strings.Fields(out); len(ids) != 3 || ids[1] != ids[0] || ids[2] != ids[0] {
		t.Errorf("process, group and session are %q", out)
	}
}
