package process

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func TestExitCodeAndBothStreams(t *testing.T) {
	stdout, stderr, status := run(t, newManager(t, cgroups), sh("echo out; echo err >&2; exit 3"))
	if stdout != "out\n" || stderr != "err\n" || status.ExitCode != 3 || status.Signal != -1 || status.TimedOut {
		t.Errorf("got %q, %q, %+v", stdout, stderr, status)
	}
}

func TestSignalledEnd(t *testing.T) {
	_, _, status := run(t, newManager(t, cgroups), sh("kill -TERM $$"))
	if status.ExitCode != -1 || status.Signal != int(syscall.SIGTERM) {
		t.Errorf("got %+v", status)
	}
}

// Many commands at a time, with orphans in between: no status is lost, swapped or missed.
func TestReaperGivesEachItsOwnStatus(t *testing.T) {
	m := newManager(t, cgroups)
	var all sync.WaitGroup
	for i := range 60 {
		all.Add(1)
		go func() {
			defer all.Done()
			code := i % 7
			p, reader, err := m.Start(sh("(true &) ; exit " + string(rune('0'+code))))
			if err != nil {
				t.Error(err)
				return
			}
			<-p.Done()
			reader.Close()
			m.Forget(p)
			if p.Status().ExitCode != code {
				t.Errorf("got %+v, want %d", p.Status(), code)
			}
		}()
	}
	all.Wait()
}

func TestOrphansAreReaped(t *testing.T) {
	m := newManager(t, cgroups)
	out, _, _ := run(t, m, sh("sh -c 'echo $$' & wait; (sh -c 'echo $$; exec sleep 0.05' &)"))
	for _, pid := range strings.Fields(out) {
		eventually(t, "orphan "+pid+" is reaped", gone(pid))
	}
}

func TestEnvironment(t *testing.T) {
	m := newManager(t, cgroups)
	t.Setenv("OF_THE_AGENT", "x")
	m.SetEnv(map[string]string{"GUEST": "g", "BOTH": "guest"})
	spec := sh("env")
	spec.Env = map[string]string{"REQUEST": "r", "BOTH": "request", "RAW": "\xff\x80"}
	out, _, _ := run(t, m, spec)
	got := strings.Split(strings.TrimSpace(out), "\n")
	got = slices.DeleteFunc(got, func(s string) bool {
		return strings.HasPrefix(s, "PWD=") || strings.HasPrefix(s, "SHLVL=") || strings.HasPrefix(s, "_=") || strings.HasPrefix(s, "OLDPWD=")
	})
	slices.Sort(got)
	want := []string{"BOTH=request", "GUEST=g", "HOME=/", "LOGNAME=me", "PATH=" + DefaultPath, "RAW=\xff\x80", "REQUEST=r", "SHELL=/bin/sh", "USER=me"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestEnvironmentRefusesWhatItCannotHold(t *testing.T) {
	for _, env := range []map[string]string{{"": "x"}, {"A=B": "x"}, {"A\x00": "x"}, {"A": "x\x00"}} {
		if err := CheckEnv(env); CodeOf(err) != BadRequest {
			t.Errorf("%q: %v", env, err)
		}
	}
}

func TestArgumentsAreBytes(t *testing.T) {
	out, _, _ := run(t, newManager(t, cgroups), Spec{Argv: []string{"printf", "%s|", "a b", "", "\xff\x80\n", "'\""}, User: "me"})
	if out != "a b||\xff\x80\n|'\"|" {
		t.Errorf("got %q", out)
	}
}

func TestChildIsCleanlyPrepared(t *testing.T) {
	m := newManager(t, cgroups)
	if out, _, _ := run(t, m, Spec{Argv: []string{"ls", "/proc/self/fd"}, User: "me"}); out != "0\n1\n2\n3\n" { // 3 is opened by ls itself
		t.Errorf("descriptors: %q", out)
	}
	if out, _, _ := run(t, m, Spec{Argv: []string{"readlink", "/proc/self/fd/0"}, User: "me"}); out != "/dev/null\n" {
		t.Errorf("stdin: %q", out)
	}
	if out, _, _ := run(t, m, Spec{Argv: []string{"grep", "SigBlk", "/proc/self/status"}, User: "me"}); out != "SigBlk:\t0000000000000000\n" {
		t.Errorf("blocked signals: %q", out)
	}
	out, _, _ := run(t, m, Spec{Argv: []string{"cut", "-d ", "-f1,5", "/proc/self/stat"}, User: "me"})
	if ids := strings.Fields(out); len(ids) != 2 || ids[0] != ids[1] {
		t.Errorf("not the leader of its process group: %q", out)
	}
}

func TestExecErrors(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/noscript", "echo no shebang\n", 0o755)
	write(t, dir+"/nointerpreter", "#!/no/such/interpreter\n", 0o755)
	write(t, dir+"/notexecutable", "#!/bin/sh\n", 0o644)
	write(t, dir+"/bin1/tool", "not executable", 0o644)
	write(t, dir+"/bin2/tool", "#!/bin/sh\necho second\n", 0o755)
	argv := func(arg ...string) Spec { return Spec{Argv: arg, User: "me"} }
	with := func(spec Spec, cwd, user, path string) Spec {
		spec.Cwd = cwd
		if user != "" {
			spec.User = user
		}
		if path != "" {
			spec.Env = map[string]string{"PATH": path}
		}
		return spec
	}
	for name, c := range map[string]struct {
		spec Spec
		want Code
	}{
		"not in PATH":            {argv("no-such-program"), CommandNotFound},
		"no name":                {argv(""), CommandNotFound},
		"no such file":           {argv("/no/such/file"), CommandNotFound},
		"below a file":           {argv("/etc/passwd/x"), CommandNotFound},
		"relative to cwd":        {with(argv("./nothing"), dir, "", ""), CommandNotFound},
		"PATH of the command":    {with(argv("ls"), "", "", "/nowhere"), CommandNotFound},
		"a directory":            {argv("/etc"), NotExecutable},
		"no permission":          {argv(dir + "/notexecutable"), NotExecutable},
		"no format":              {argv(dir + "/noscript"), NotExecutable},
		"no interpreter":         {argv(dir + "/nointerpreter"), NotExecutable},
		"in PATH, no permission": {with(argv("tool"), "", "", dir+"/bin1"), NotExecutable},
		"a device":               {argv("/dev/null"), NotExecutable},
		"cwd does not exist":     {with(argv("ls"), dir+"/none", "", ""), BadCwd},
		"cwd is a file":          {with(argv("ls"), dir+"/noscript", "", ""), BadCwd},
		"cwd below the home":     {with(argv("ls"), "no/such", "", ""), BadCwd},
		"no such user":           {with(argv("ls"), "", "nobody-here", ""), NoSuchUser},
		"no such group":          {with(argv("ls"), "", "me:nobody-here", ""), NoSuchUser},
		"too long":               {argv("ls", strings.Repeat("x", 200_000)), ArgsTooLong},
	} {
		t.Run(name, func(t *testing.T) {
			p, _, err := newManager(t, cgroups).Start(c.spec)
			if err == nil {
				p.Kill()
				t.Fatal("it started")
			}
			if CodeOf(err) != c.want {
				t.Errorf("got %s (%v), want %s", CodeOf(err), err, c.want)
			}
		})
	}
	t.Run("the next in PATH", func(t *testing.T) {
		out, _, _ := run(t, newManager(t, cgroups), with(argv("tool"), "", "", dir+"/bin1:"+dir+"/bin2"))
		if out != "second\n" {
			t.Errorf("got %q", out)
		}
	})
	t.Run("relative to cwd", func(t *testing.T) {
		out, _, _ := run(t, newManager(t, cgroups), with(argv("bin2/tool"), dir, "", ""))
		if out != "second\n" {
			t.Errorf("got %q", out)
		}
	})
	t.Run("relative PATH", func(t *testing.T) {
		out, _, _ := run(t, newManager(t, cgroups), with(argv("tool"), dir+"/bin2", "", ":bin"))
		if out != "second\n" {
			t.Errorf("got %q", out)
		}
	})
}

func TestFailedStartsLeaveNoDescriptors(t *testing.T) {
	m := newManager(t, cgroups)
	write(t, t.TempDir()+"/x", "", 0o644)
	count := func() int { fds, _ := os.ReadDir("/proc/self/fd"); return len(fds) }
	before := count()
	for range 20 {
		for _, spec := range []Spec{{Argv: []string{"ls", strings.Repeat("x", 200_000)}, User: "me", Stdin: true}, {Argv: []string{"/etc/passwd"}, User: "me"}} {
			if _, _, err := m.Start(spec); err == nil {
				t.Fatal("it started")
			}
		}
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// What a user may enter and execute is checked with the user's identity: exec alone would only
// return EACCES.
func TestAccessIsTheUsers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to become somebody else")
	}
	base := t.TempDir()
	os.Chmod(base, 0o755)
	os.Chmod(filepath.Dir(base), 0o755)
	os.Mkdir(base+"/private", 0o700)
	write(t, base+"/mine", "#!/bin/sh\n", 0o700)
	m := newManager(t, cgroups)
	for want, spec := range map[Code]Spec{
		BadCwd:        {Argv: []string{"true"}, Cwd: base + "/private", User: "daemon"},
		NotExecutable: {Argv: []string{base + "/mine"}, User: "daemon"},
	} {
		if _, _, err := m.Start(spec); CodeOf(err) != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	out, _, status := run(t, m, Spec{Argv: []string{"id", "-u"}, Cwd: base, User: "daemon"})
	if out != "1\n" {
		t.Errorf("got %q, %+v", out, status)
	}
	if uid := syscall.Geteuid(); uid != 0 {
		t.Errorf("the agent is now %d", uid)
	}
	for range 50 { // no thread of the agent has kept the user's identity
		if err := checkWorkingDirectory(base + "/private"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStopRefusesNewCommands(t *testing.T) {
	m := newManager(t, cgroups)
	m.Stop()
	if _, _, err := m.Start(sh("true")); CodeOf(err) != PoweringOff {
		t.Errorf("got %v", err)
	}
}

func TestListAndGetKnowTheSessions(t *testing.T) {
	m := newManager(t, cgroups)
	a, b := start(t, m, sh("exec sleep 100")), start(t, m, sh("exec sleep 100"))
	if list := m.List(); len(list) != 2 || list[0] != a.Process || list[1] != b.Process {
		t.Errorf("got %v", list)
	}
	a.Kill()
	waitDone(t, a.Process)
	finish(t, a)
	if err := a.Signal(15); CodeOf(err) != NoSuchProcess {
		t.Errorf("got %v", err)
	}
	if len(m.List()) != 2 {
		t.Error("it is forgotten before its request has ended")
	}
	m.Forget(a.Process)
	if list := m.List(); len(list) != 1 || list[0] != b.Process {
		t.Errorf("got %v", list)
	}
	if _, err := m.Get(a.ID); CodeOf(err) != NoSuchProcess {
		t.Errorf("got %v", err)
	}
	if p, err := m.Get(b.ID); err != nil || p != b.Process {
		t.Errorf("got %v, %v", p, err)
	}
}
