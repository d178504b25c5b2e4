package process

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// terminal returns a Spec for a script in a terminal of 24 rows and 80 columns.
func terminal(script string) Spec {
	spec := sh(script)
	spec.Terminal = &Size{24, 80}
	return spec
}

func (r *running) enter(t *testing.T, text string) {
	t.Helper()
	if n, err := r.WriteStdin(context.Background(), strings.NewReader(text), false); err != nil || n != int64(len(text)) {
		t.Fatalf("wrote %d: %v", n, err)
	}
}

func TestTerminal(t *testing.T) {
	spec := terminal("stty size; echo err >&2; test -t 0 && test -t 1 && test -t 2 && : </dev/tty && tty; read x; echo got $x; exit 5")
	spec.Stdin = true
	p := start(t, newManager(t, cgroups), spec)
	if got := p.until(t, "pts/"); got != "24 80\r\nerr\r\n/dev/pts/" {
		t.Errorf("got %q", got)
	}
	p.until(t, "\n")
	p.enter(t, "abc\n")
	out, stderr := finish(t, p)
	if out != "abc\r\ngot abc\r\n" || stderr != "" || p.Status().ExitCode != 5 || p.Stdin {
		t.Errorf("got %q, %q, %+v, stdin %v", out, stderr, p.Status(), p.Stdin)
	}
}

func TestTerminalIsTheSessionsOwn(t *testing.T) {
	m := newManager(t, cgroups)
	out, _, _ := run(t, m, terminal("ls -l /proc/self/fd | wc -l; cut -d' ' -f1,5,6,8 /proc/$$/stat; stat -c '%u %a' $(tty)"))
	lines := strings.Split(out, "\r\n")
	if lines[0] != "5" { // a line for the total, three for the terminal, one for the directory
		t.Errorf("descriptors: %q", out)
	}
	ids := strings.Fields(lines[1])
	if len(ids) != 4 || ids[1] != ids[0] || ids[2] != ids[0] {
		t.Errorf("process, group, session, foreground: %q", ids)
	}
	if lines[2] != strconv.Itoa(os.Getuid())+" 600" { // the fixture has no group tty
		t.Errorf("owner and mode: %q", lines[2])
	}
}

func TestTerminalBelongsToTheUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to become somebody else")
	}
	m := newManager(t, cgroups)
	write(t, m.accounts.Root+"/etc/group", "root:x:0:\ntty:x:5:\n", 0o644)
	spec := terminal("stat -c '%u %g %a' $(tty); echo fine >/dev/tty")
	spec.User = "daemon"
	if out, _, _ := run(t, m, spec); out != "1 5 620\r\nfine\r\n" {
		t.Errorf("got %q", out)
	}
}

func TestTermHasADefault(t *testing.T) {
	m := newManager(t, cgroups)
	for _, c := range []struct {
		env  map[string]string
		want string
	}{{nil, "xterm-256color"}, {map[string]string{"TERM": "dumb"}, "dumb"}} {
		spec := terminal("echo $TERM")
		spec.Env = c.env
		if out, _, _ := run(t, m, spec); out != c.want+"\r\n" {
			t.Errorf("got %q, want %q", out, c.want)
		}
	}
	if out, _, _ := run(t, m, sh("echo ${TERM-none}")); out != "none\n" {
		t.Errorf("without a terminal: %q", out)
	}
}

func TestResize(t *testing.T) {
	p := start(t, newManager(t, cgroups), terminal("trap 'stty size' WINCH; echo ready; while :; do sleep 0.01; done"))
	p.until(t, "ready\r\n")
	for _, size := range []Size{{50, 132}, {50, 132}, {1, 65535}} { // the second resize changes nothing, and is still signalled
		if err := p.Resize(size); err != nil {
			t.Fatal(err)
		}
		p.until(t, strconv.Itoa(int(size.Rows))+" "+strconv.Itoa(int(size.Cols))+"\r\n")
		if now := p.TerminalSize(); *now != size {
			t.Errorf("got %v", now)
		}
	}
	p.Kill()
	waitDone(t, p.Process)
	if err := p.Resize(Size{1, 1}); CodeOf(err) != NoSuchProcess {
		t.Errorf("after the end: %v", err)
	}
	plain := start(t, newManager(t, cgroups), sh("exec sleep 100"))
	if err := plain.Resize(Size{1, 1}); CodeOf(err) != NoTerminal || plain.TerminalSize() != nil {
		t.Errorf("without a terminal: %v", err)
	}
}

// A key is echoed before its line is complete.
func TestEchoOfAKey(t *testing.T) {
	p := start(t, newManager(t, cgroups), terminal("read x; echo \"[$x]\""))
	for _, c := range [][2]string{{"a", "a"}, {"b", "b"}, {"ä", "ä"}, {"\x7f", "\b \b"}} { // what is erased is a character
		p.enter(t, c[0])
		p.until(t, c[1])
	}
	p.enter(t, "\n")
	p.until(t, "[ab]\r\n")
}

func TestKeysSignalTheForegroundGroup(t *testing.T) {
	m := newManager(t, cgroups)
	p := start(t, m, terminal("trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 0.01; done"))
	p.until(t, "ready\r\n")
	p.enter(t, "\x03") // Ctrl-C
	p.until(t, "caught\r\n")
	if finish(t, p); p.Status().ExitCode != 7 {
		t.Errorf("got %+v", p.Status())
	}
	p = start(t, m, terminal("cat; echo ended"))
	p.enter(t, "line\n\x04") // Ctrl-D
	p.until(t, "ended\r\n")
	finish(t, p)
	p = start(t, m, terminal("cat; echo ended"))
	if n, err := p.WriteStdin(context.Background(), strings.NewReader("line\n"), true); n != 5 || err != nil {
		t.Errorf("wrote %d: %v", n, err)
	}
	p.until(t, "ended\r\n")
	finish(t, p)
}

func bash(t *testing.T) *running {
	t.Helper()
	if executable("/bin/bash") != nil {
		t.Skip("no bash here")
	}
	spec := Spec{Argv: []string{"/bin/bash", "--norc", "--noprofile", "--noediting", "-i"}, Env: map[string]string{"PS1": "$ ", "PS2": ""}, User: "me", Terminal: &Size{24, 80}}
	p := start(t, newManager(t, cgroups), spec)
	if greeting := p.until(t, "$ "); strings.Contains(greeting, "job control") {
		t.Errorf("got %q", greeting)
	}
	return p
}

func TestJobControl(t *testing.T) {
	p := bash(t)
	p.enter(t, "sh -c 'echo up; exec sleep 1000'\n")
	p.until(t, "up\r\n")
	if group := p.terminal.foregroundGroup(); group == p.PID {
		t.Errorf("the job is not in the foreground")
	}
	p.enter(t, "\x1a") // Ctrl-Z
	p.until(t, "Stopped")
	p.until(t, "$ ")
	p.enter(t, "bg; jobs; kill %1; wait; echo waited\n")
	p.until(t, "Running")
	p.until(t, "\r\nwaited\r\n")
	p.enter(t, "sh -c 'trap \"echo caught; exit\" TERM; echo ready; while :; do sleep 0.01; done'\n")
	p.until(t, "ready\r\n")
	if err := p.Signal(int(syscall.SIGTERM)); err != nil { // a shell in the background would ignore it
		t.Fatal(err)
	}
	p.until(t, "caught\r\n")
	p.until(t, "$ ")
	p.enter(t, "sh -c 'echo up; exec sleep 1000'\n")
	p.until(t, "up\r\n")
	p.enter(t, "\x03") // Ctrl-C
	p.until(t, "$ ")
	p.enter(t, "echo $?\n")
	p.until(t, "130\r\n")
	p.enter(t, "exit 9\n")
	if finish(t, p); p.Status().ExitCode != 9 {
		t.Errorf("got %+v", p.Status())
	}
}

// Without a foreground process group, signals go to the command's process group.
func TestSignalInATerminal(t *testing.T) {
	p := start(t, newManager(t, cgroups), terminal("exec sleep 1000"))
	if err := p.Signal(int(syscall.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	if finish(t, p); p.Status().Signal != int(syscall.SIGTERM) {
		t.Errorf("got %+v", p.Status())
	}
}

func TestEveryByteGoesThroughARawTerminal(t *testing.T) {
	p := start(t, newManager(t, cgroups), terminal("stty raw -echo; echo ready; head -c 4096 | od -An -v -tx1 | tr -d ' \\n'; stty sane"))
	p.until(t, "ready\n")
	var all []byte
	for i := range 4096 {
		all = append(all, byte(i*7))
	}
	p.enter(t, string(all))
	var want strings.Builder
	for _, b := range all {
		want.WriteString("0123456789abcdef"[b>>4:][:1] + "0123456789abcdef"[b&15:][:1])
	}
	if got, _ := finish(t, p); got != want.String() {
		t.Errorf("%d characters came back", len(got))
	}
	p = start(t, newManager(t, cgroups), terminal("stty raw -echo; printf '\\000\\003\\021\\023\\n\\r\\377'"))
	if got, _ := finish(t, p); got != "\x00\x03\x11\x13\n\r\xff" {
		t.Errorf("got %q", got)
	}
}

// Everything written to the terminal before its leader ended arrives.
func TestOutputOfATerminalIsComplete(t *testing.T) {
	m := newManager(t, cgroups)
	for range 200 {
		out, _, _ := run(t, m, Spec{Argv: []string{"seq", "3000"}, User: "me", Terminal: &Size{24, 80}})
		if len(out) != 16893 || !strings.HasSuffix(out, "\r\n2999\r\n3000\r\n") {
			t.Fatalf("%d bytes, ends with %q", len(out), out[max(0, len(out)-20):])
		}
	}
}

func TestDescendantsDoNotDelayTheEndOfATerminal(t *testing.T) {
	m := newManager(t, cgroups)
	p := start(t, m, terminal("trap '' HUP; (while :; do echo x; done) 2>/dev/null & echo pid $!; exec 3>/dev/null; echo done; exit 4"))
	p.until(t, "pid ") // the descendant's output may come first
	pid := strings.TrimSpace(p.until(t, "\r\n"))
	waitDone(t, p.Process)
	finish(t, p)
	if p.Status().ExitCode != 4 {
		t.Errorf("got %+v", p.Status())
	}
	kill(t, pid)
	eventually(t, "it is reaped", gone(pid))
}

// A command may close its terminal for a while: the agent keeps the terminal open until the end.
func TestTerminalThatNobodyHoldsOpen(t *testing.T) {
	out, _, status := run(t, newManager(t, cgroups), terminal("t=$(tty); echo one; exec <&- >&- 2>&-; sleep 0.1; exec <$t >$t 2>&1; echo two; exit 3"))
	if out != "one\r\ntwo\r\n" || status.ExitCode != 3 {
		t.Errorf("got %q, %+v", out, status)
	}
}

// More input than the terminal holds goes in while the program answers with as much and no reader
// reads.
func TestPasteDoesNotDeadlock(t *testing.T) {
	dir := t.TempDir()
	os.Chmod(dir, 0o777)
	data := make([]byte, 1<<20)
	rand.Read(data)
	for name, script := range map[string]string{
		"quiet": "stty raw -echo; echo ready; head -c 1048576 > " + dir + "/quiet",
		"echo":  "stty raw echo; echo ready; head -c 1048576 > " + dir + "/echo",
		"cat":   "stty raw -echo; echo ready; head -c 1048576 | tee " + dir + "/cat",
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, newManager(t, cgroups), terminal(script))
			p.until(t, "ready")
			entered := make(chan error, 1)
			go func() {
				_, err := p.WriteStdin(context.Background(), bytes.NewReader(data), false)
				entered <- err
			}()
			if name == "echo" { // first, no output is read
				eventually(t, "the output is full", func() bool {
					p.Log.mu.Lock()
					defer p.Log.mu.Unlock()
					return len(p.Log.room(Stdout)) == 0 || len(entered) > 0
				})
			}
			out, _ := finish(t, p)
			if err := <-entered; err != nil {
				t.Error(err)
			}
			if got, _ := os.ReadFile(dir + "/" + name); !bytes.Equal(got, data) {
				t.Errorf("%d bytes arrived", len(got))
			}
			if name == "cat" && !strings.HasSuffix(out, string(data)) {
				t.Errorf("%d bytes came back", len(out))
			}
		})
	}
}

// A write blocks until the terminal's program reads. The end of the request and the end of the
// program interrupt it.
func TestInputThatATerminalDoesNotTake(t *testing.T) {
	p := start(t, newManager(t, cgroups), terminal("stty raw -echo; echo ready; exec yes"))
	p.until(t, "ready")
	eventually(t, "nor does its reader read", func() bool {
		p.Log.mu.Lock()
		defer p.Log.mu.Unlock()
		return len(p.Log.room(Stdout)) == 0
	})
	more := func() *bytes.Reader { return bytes.NewReader(make([]byte, 1<<20)) }
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := p.WriteStdin(ctx, more(), false); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled request: %v", err)
	}
	time.AfterFunc(20*time.Millisecond, p.Kill)
	if _, err := p.WriteStdin(context.Background(), more(), false); CodeOf(err) != StdinClosed {
		t.Errorf("a killed process: %v", err)
	}
	waitDone(t, p.Process)
	if _, err := p.WriteStdin(context.Background(), more(), false); CodeOf(err) != StdinClosed {
		t.Errorf("after the end: %v", err)
	}
}
