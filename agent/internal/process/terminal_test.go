package process

import (
	"context"
	"strings"
	"testing"
)

// terminal is a Spec for a script in a terminal of 24 lines of 80.
func terminal(script string) Spec {
	spec := sh(script)
	spec.Terminal = &Size{24, 80}
	return spec
}

func (r *running) enter(t *testing.T, text string) {
	t.Helper()
	if _, err := r.WriteStdin(context.Background(), strings.NewReader(text), false); err != nil {
		t.Fatal(err)
	}
}

func TestTerminal(t *testing.T) {
	p := start(t, newManager(t, cgroups), terminal("stty size; tty; echo err >&2; read x; echo got $x; exit 5"))
	p.until(t, "err\r\n")
	p.enter(t, "abc\n")
	out, _ := finish(t, p)
	if out != "abc\r\ngot abc\r\n" || p.Status().ExitCode != 5 {
		t.Errorf("got %q %+v", out, p.Status())
	}
}

func TestOutputOfATerminalIsComplete(t *testing.T) {
	m := newManager(t, cgroups)
	for range 200 {
		spec := terminal("")
		spec.Shell, spec.Argv = nil, []string{"seq", "3000"}
		out, _, _ := run(t, m, spec)
		if !strings.HasSuffix(out, "\r\n2999\r\n3000\r\n") {
			t.Fatalf("%d bytes, ends with %q", len(out), out[max(0, len(out)-20):])
		}
	}
}
