package process

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func background(script string) Spec {
	spec := sh(script)
	spec.Background = true
	return spec
}

func ids(sessions []*Process) (ids []string) {
	for _, p := range sessions {
		ids = append(ids, p.ID)
	}
	return ids
}

func TestAttachAfterTheEnd(t *testing.T) {
	m := newManager(t, cgroups)
	p := start(t, m, background("printf 0123456789; printf error >&2; exit 3"))
	p.close() // leave at once: it is a background command
	waitDone(t, p.Process)
	eventually(t, "it is kept", func() bool { m.mu.Lock(); defer m.mu.Unlock(); return len(m.kept) == 1 })
	for range 2 {
		if stdout, stderr := finish(t, p.attach(t, 0, 0)); stdout != "0123456789" || stderr != "error" {
			t.Errorf("got %q, %q", stdout, stderr)
		}
	}
	later := p.attach(t, 4, 100)
	if stdout, stderr := finish(t, later); stdout != "456789" || stderr != "" || later.offsets[Stdout] != 10 {
		t.Errorf("got %q, %q", stdout, stderr)
	}
	if got, err := m.Get(p.ID); err != nil || got != p.Process || got.Status().ExitCode != 3 {
		t.Errorf("got %v, %v", got, err)
	}
	m.Forget(p.Process)
	if _, err := m.Get(p.ID); CodeOf(err) != NoSuchProcess {
		t.Errorf("got %v", err)
	}
	if _, err := p.Attach(0, 0); CodeOf(err) != NoSuchProcess {
		t.Errorf("got %v", err)
	}
}

func TestEndedSessionsAreBounded(t *testing.T) {
	m := newManager(t, cgroups)
	m.limits.ended, m.limits.endedBytes = 3, 2500
	var all []*running
	end := func(script string) {
		t.Helper()
		p := start(t, m, background(script))
		finish(t, p)
		all = append(all, p)
		eventually(t, "it is kept", func() bool {
			m.mu.Lock()
			defer m.mu.Unlock()
			return slices.Contains(m.kept, p.Process)
		})
	}
	runs := start(t, m, background("sleep 1000"))
	for range 5 {
		end("echo x")
	}
	reader := all[4].attach(t, 0, 0)
	if got, want := ids(m.List()), []string{runs.ID, all[2].ID, all[3].ID, all[4].ID}; !slices.Equal(got, want) {
		t.Errorf("of too many: got %v, want %v", got, want)
	}
	end("head -c 1000 /dev/zero")
	end("head -c 1499 /dev/zero")
	if got, want := ids(m.List()), []string{runs.ID, all[5].ID, all[6].ID}; !slices.Equal(got, want) {
		t.Errorf("of too large ones: got %v, want %v", got, want)
	}
	if out, _ := finish(t, reader); out != "x\n" {
		t.Errorf("a reader lost its session: %q", out)
	}
}

func TestLongArgumentsAreNotKept(t *testing.T) {
	m := newManager(t, cgroups)
	for name, c := range map[string]struct{ argv, want []string }{
		"one is long":   {[]string{"true", strings.Repeat("x", 100_000), "y"}, []string{"true", strings.Repeat("x", shownBytes-5)}},
		"many are long": {append([]string{"true"}, make([]string, 10_000)...), append([]string{"true"}, make([]string, shownBytes-5)...)},
		"none":          {[]string{"true", "", "x"}, []string{"true", "", "x"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, m, Spec{Argv: c.argv, User: "me"})
			waitDone(t, p.Process)
			if p.Status().ExitCode != 0 || !slices.Equal(p.Argv, c.want) {
				t.Errorf("status %v, %d arguments are kept, want %d", p.Status(), len(p.Argv), len(c.want))
			}
		})
	}
}

func TestForegroundIsNotKept(t *testing.T) {
	m := newManager(t, cgroups)
	p := start(t, m, sh("echo x"))
	finish(t, p)
	m.Forget(p.Process)
	if list := m.List(); len(list) != 0 {
		t.Errorf("got %v", ids(list))
	}
	eventually(t, "its memory is given back", p.Log.gone)
}

// Without a reader, the command blocks until the grace has passed; then the newest output is kept.
func TestBackgroundWithoutAReader(t *testing.T) {
	m := newManager(t, cgroups)
	m.limits.background, m.limits.grace = 100_000, 100*time.Millisecond
	begun := time.Now()
	p := start(t, m, background("seq 200000"))
	p.close()
	waitDone(t, p.Process)
	if took := time.Since(begun); took < m.limits.grace {
		t.Errorf("it ended after %v", took)
	}
	eventually(t, "all is read", func() bool { _, end := p.Log.Offsets(Stdout); return end == 1288895 })
	from, to := p.Log.Offsets(Stdout)
	late := p.attach(t, 0, 0)
	out, _ := finish(t, late)
	if from != to-100_000 || late.offsets[Stdout] != to || len(out) != 100_000 || !strings.HasSuffix(out, "\n199999\n200000\n") {
		t.Errorf("%d to %d, %d bytes", from, to, len(out))
	}
}

func TestReadersOfOneSession(t *testing.T) {
	m := newManager(t, cgroups)
	p := start(t, m, background("seq 300000; exec sleep 1000"))
	slow := p.attach(t, 0, 0)
	other := start(t, m, sh("echo fine"))
	if out, _ := finish(t, other); out != "fine\n" { // other commands are not blocked
		t.Errorf("got %q", out)
	}
	for p.offsets[Stdout] < int64(p.Log.capacity+ringSlack) {
		p.read(t, 64<<10)
	}
	if n := p.Readers(); n != 2 {
		t.Errorf("%d readers", n)
	}
	if _, _, n, _ := p.reader.Next(make([]byte, 1)); n != 0 {
		t.Error("the slow reader was passed over")
	}
	slow.close()
	p.until(t, "\n299999\n300000\n")
}

func TestWatcherOfABackgroundSession(t *testing.T) {
	m := newManager(t, cgroups)
	m.limits.background, m.limits.grace = 10_000, time.Hour
	p := start(t, m, background("seq 200000"))
	p.close()
	defer p.Watch()()
	waitDone(t, p.Process)
}

// KillAndWait kills the descendants of an ended command, and the session is listed until then.
func TestKillOfAnEndedSession(t *testing.T) {
	for name, groups := range map[string]*Cgroups{"with cgroups": cgroups, "without": nil} {
		for _, background := range []bool{true, false} {
			m := newManager(t, groups)
			spec := sh("sleep 1000 & echo $!")
			spec.Background = background
			p := start(t, m, spec)
			pid := p.line(t, Stdout)
			waitDone(t, p.Process)
			if !background {
				m.Finish(p.Process)
			}
			if got, err := m.Get(p.ID); got != p.Process || err != nil || gone(pid)() {
				t.Errorf("%s: %v", name, err)
			}
			if err := p.KillAndWait(t.Context()); err != nil {
				t.Error(err)
			}
			eventually(t, "it is reaped", gone(pid))
			if _, err := m.Get(p.ID); (err == nil) != background {
				t.Errorf("%s: after the kill: %v", name, err)
			}
		}
	}
}

// A descendant in a session of its own is killed too.
func TestKillOfADaemon(t *testing.T) {
	if cgroups == nil {
		t.Skip("needs cgroup v2")
	}
	m := newManager(t, cgroups)
	spec := background("setsid sh -c 'echo $$; exec sleep 1000' & read x")
	spec.Stdin = true
	p := start(t, m, spec)
	pid := p.line(t, Stdout)
	p.enter(t, "\n")
	waitDone(t, p.Process)
	if err := p.KillAndWait(t.Context()); err != nil {
		t.Error(err)
	}
	eventually(t, "it is reaped", gone(pid))
}

func TestLogin(t *testing.T) {
	m := newManager(t, cgroups)
	shells := t.TempDir()
	os.Chmod(shells, 0o755)
	write(t, shells+"/myshell", "#!/bin/sh\necho mine\n", 0o755)
	write(t, shells+"/nologin", "#!/bin/sh\nexit 1\n", 0o755)
	write(t, shells+"/unusable", "#!/bin/sh\n", 0o644)
	fallback := "/bin/bash"
	if executable(fallback) != nil {
		fallback = "/bin/sh"
	}
	for shell, want := range map[string]string{
		"/bin/sh": "/bin/sh", shells + "/myshell": shells + "/myshell", shells + "/nologin": fallback, "/usr/bin/false": fallback, shells + "/unusable": fallback,
		"/no/such/shell": fallback, "sh": fallback, "": "/bin/sh",
	} {
		write(t, m.accounts.Root+"/etc/passwd", fmt.Sprintf("me:x:%d:%d::/:%s\n", os.Getuid(), os.Getgid(), shell), 0o644)
		plan, err := m.plan(Spec{Login: true, User: "me"}, nil)
		if err != nil {
			t.Errorf("%s: %v", shell, err)
			continue
		}
		if name := want[strings.LastIndex(want, "/")+1:]; !slices.Equal(plan.argv, []string{"-" + name}) || !slices.Equal(plan.paths, []string{want}) || plan.env["SHELL"] != want {
			t.Errorf("%s: got %q, %q, %q", shell, plan.argv, plan.paths, plan.env["SHELL"])
		}
	}
	write(t, m.accounts.Root+"/etc/passwd", fmt.Sprintf("me:x:%d:%d::/:/bin/sh\n", os.Getuid(), os.Getgid()), 0o644)
	spec := Spec{Login: true, User: "me", Stdin: true}
	p := start(t, m, spec)
	p.enter(t, "echo $0 $HOME; exit 6\n")
	if out, _ := finish(t, p); out != "-sh /\n" || p.Status().ExitCode != 6 {
		t.Errorf("got %q, %+v", out, p.Status())
	}
}

func TestSudo(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	home := t.TempDir()
	m := newManager(t, cgroups)
	write(t, m.accounts.Root+"/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001::"+home+":/bin/zsh\n", 0o644)
	spec := sh("id -u; pwd; echo $USER $LOGNAME $HOME $SHELL $SUDO_USER $SUDO_UID $SUDO_GID")
	spec.User, spec.Sudo = "ann", true
	if out, _, _ := run(t, m, spec); out != "0\n"+home+"\nroot root /root /bin/sh ann 1000 1001\n" {
		t.Errorf("got %q", out)
	}
	spec.User, spec.Cwd = "4242:7", "/usr"
	if out, _, _ := run(t, m, spec); out != "0\n/usr\nroot root /root /bin/sh 4242 4242 7\n" {
		t.Errorf("got %q", out)
	}
	spec = sh("echo ${SUDO_USER-none}")
	if out, _, _ := run(t, m, Spec{Shell: spec.Shell, User: "root"}); out != "none\n" {
		t.Errorf("got %q", out)
	}
}
