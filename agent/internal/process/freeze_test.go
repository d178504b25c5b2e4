package process

import (
	"os"
	"strings"
	"testing"
)

// cpuTicks returns what the scheduler has counted for a process: it does not change while the process
// is stopped.
func cpuTicks(t *testing.T, pid string) string {
	t.Helper()
	stat, err := os.ReadFile("/proc/" + pid + "/schedstat")
	if err != nil {
		t.Fatal(err)
	}
	return string(stat)
}

func TestFrozenCommandsStandStill(t *testing.T) {
	if cgroups == nil {
		t.Skip("needs cgroup v2")
	}
	m := newManager(t, cgroups)
	p := start(t, m, background("echo $$; while :; do :; done"))
	pid := p.line(t, Stdout)
	for range 2 { // idempotent
		if err := m.Freeze(); err != nil {
			t.Fatal(err)
		}
	}
	before := cpuTicks(t, pid)

	started := make(chan string)
	go func() {
		q, reader, err := m.Start(sh("echo later"))
		if err == nil {
			<-q.Done()
			reader.Close()
			m.Finish(q)
		}
		started <- cpuTicks(t, pid)
	}()
	if after := cpuTicks(t, pid); after != before {
		t.Errorf("it ran while it was frozen: %q, then %q", before, after)
	}
	for range 2 {
		if err := m.Thaw(); err != nil {
			t.Fatal(err)
		}
	}
	if after := <-started; after == before {
		t.Errorf("it stands still after the thaw")
	}
}

func TestForegroundCommandsOfAFrozenGuestAreKilledBeforeTheyGoOn(t *testing.T) {
	if cgroups == nil {
		t.Skip("needs cgroup v2")
	}
	m := newManager(t, cgroups)
	const script = "echo ready; while :; do :; done"
	foreground, kept := start(t, m, sh(script)), start(t, m, background(script))
	foreground.line(t, Stdout)
	kept.line(t, Stdout)
	m.Restored() // not frozen: nothing happens
	if err := m.Freeze(); err != nil {
		t.Fatal(err)
	}
	m.Restored()
	waitDone(t, foreground.Process)
	if err := m.Thaw(); err != nil {
		t.Fatal(err)
	}
	if isClosed(kept.Done()) {
		t.Error("the background command was killed too")
	}
}

func TestARestoredCommandGetsItsSignalFirst(t *testing.T) {
	if cgroups == nil {
		t.Skip("needs cgroup v2")
	}
	m := newManager(t, cgroups)
	spec := background("trap 'echo restored; exit' USR1; echo ready; while :; do :; done")
	spec.RestoreSignal = 10
	p := start(t, m, spec)
	p.line(t, Stdout)
	for _, restored := range []bool{false, true} { // a parent that only goes on gets none
		if err := m.Freeze(); err != nil {
			t.Fatal(err)
		}
		if restored {
			m.Restored()
		}
		if err := m.Thaw(); err != nil {
			t.Fatal(err)
		}
	}
	if line := p.line(t, Stdout); line != "restored" {
		t.Errorf("got %q", line)
	}
	waitDone(t, p.Process)
}

func TestAFreezeThatFailsChangesNothing(t *testing.T) {
	m := newManager(t, nil)
	p := start(t, m, background("exec sleep 1000"))
	if err := m.Freeze(); err == nil || !strings.Contains(err.Error(), "cgroups") {
		t.Errorf("got %v", err)
	}
	p.Kill()
	waitDone(t, p.Process)
	if err := m.Freeze(); err != nil {
		t.Error(err)
	}
	if err := m.Thaw(); err != nil {
		t.Error(err)
	}
	run(t, m, sh("true"))
}
