package process

import (
	"strings"
	"testing"
	"time"
)

func memoryOf(total int) *memory { return &memory{total: func() int { return total }} }

// A session with little output takes little memory; one with much takes at most half of what is
// free.
func TestLogTakesMemoryAsItFills(t *testing.T) {
	memory := memoryOf(4 << 20)
	quiet, loud, second := newLoggedIn(t, memory, 1<<20, 0), newLoggedIn(t, memory, 1<<20, 0), newLoggedIn(t, memory, 8<<20, 0)
	quiet.writes(Stdout, "a line")
	if taken := memory.taken.Load(); taken != 3*firstRing {
		t.Errorf("%d bytes are taken", taken)
	}
	line := strings.Repeat("x", 32<<10)
	for range 64 {
		loud.writes(Stdout, line)
		second.writes(Stderr, line)
	}
	if from, to := loud.Offsets(Stdout); to != 2<<20 || to-from != 1<<20 {
		t.Errorf("%d to %d are kept", from, to)
	}
	if from, to := second.Offsets(Stderr); to != 2<<20 || to-from != 1<<20-ringSlack {
		t.Errorf("%d to %d of the second are kept", from, to)
	}
	quiet.forget()
	loud.forget()
	second.forget()
	for _, l := range []*logged{quiet, loud, second} {
		l.writerDone()
	}
	if taken := memory.taken.Load(); taken != 0 {
		t.Errorf("%d bytes are taken by nobody", taken)
	}
}

// Any number of sessions with slow readers stay within the shared bound plus the first ring of
// each, and lose no output.
func TestLogsShareTheMemory(t *testing.T) {
	const number = 40
	memory := memoryOf(1 << 20)
	line := strings.Repeat("0123456789abcdef", 2<<10)
	var logs []*logged
	for range number {
		l := newLoggedIn(t, memory, 1<<20, time.Hour)
		reader := l.attach([2]int64{})
		l.writes(Stdout, line)
		done := l.write(Stdout, line)
		if taken := memory.taken.Load(); taken > 1<<20+number*firstRing {
			t.Fatalf("%d bytes are taken", taken)
		}
		var got strings.Builder
		for got.Len() < 2*len(line) {
			<-reader.Ready()
			pieces, _ := rest(reader)
			for _, p := range pieces {
				got.WriteString(p.text)
			}
		}
		<-done
		if got.String() != line+line {
			t.Fatal("the output is not what was written")
		}
		logs = append(logs, l)
	}
	if last := logs[number-1]; last.keeps() != firstRing/2 {
		t.Errorf("the last keeps %d bytes", last.keeps())
	}
}

// Pipes with much traffic are enlarged while memory is free, and return it.
func TestPipesTakeMemory(t *testing.T) {
	for total, want := range map[int]int{64 << 20: 2 * largePipe, 0: 0} {
		m := newManager(t, cgroups)
		m.memory = memoryOf(total)
		spec := sh("cat")
		spec.Stdin = true
		p := start(t, m, spec)
		input := strings.Repeat("0123456789abcdef", 64<<10)
		written := make(chan error, 1)
		go func() {
			_, err := p.WriteStdin(t.Context(), strings.NewReader(input), false)
			written <- err
		}()
		for len(p.streams[Stdout]) < len(input) {
			p.read(t, 64<<10)
		}
		if err := <-written; err != nil || string(p.streams[Stdout]) != input {
			t.Errorf("%d bytes came back, %v", len(p.streams[Stdout]), err)
		}
		p.Log.mu.Lock()
		if p.Log.pipes != want {
			t.Errorf("of %d, the pipes take %d", total, p.Log.pipes)
		}
		p.Log.mu.Unlock()
		if _, err := p.WriteStdin(t.Context(), strings.NewReader(""), true); err != nil {
			t.Error(err)
		}
		finish(t, p)
		m.Forget(p.Process)
		eventually(t, "its memory is given back", func() bool { return m.memory.taken.Load() == 0 })
	}
}

// The kept output of an ended command takes no more memory than needed, and its pipes are gone.
func TestEndedSessionsTakeWhatTheyKeep(t *testing.T) {
	const kept = 700_000
	m := newManager(t, cgroups)
	m.memory = memoryOf(64 << 20)
	spec := background("cat; for i in 1 2 3 4 5 6 7 8 9; do printf a; printf b >&2; done")
	spec.Stdin = true
	p := start(t, m, spec)
	behind := p.attach(t, 0, 0)
	input := strings.Repeat("0123456789", kept/10)
	written := make(chan error, 1)
	go func() {
		_, err := p.WriteStdin(t.Context(), strings.NewReader(input), true)
		written <- err
	}()
	if stdout, stderr := finish(t, p); stdout != input+"aaaaaaaaa" || stderr != "bbbbbbbbb" {
		t.Errorf("%d bytes and %.100q came", len(stdout), stderr)
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
	eventually(t, "the rest is given back", func() bool { return m.memory.taken.Load() < kept+8<<10 })
	for _, r := range []*running{behind, p.attach(t, 0, 0), p.attach(t, 650_001, 3)} {
		stdout, stderr := finish(t, r)
		if r.offsets != [2]int64{kept + 9, 9} || !strings.HasSuffix(input+"aaaaaaaaa", stdout) || !strings.HasSuffix("bbbbbbbbb", stderr) {
			t.Errorf("%d bytes and %.100q came to %d", len(stdout), stderr, r.offsets)
		}
	}
	m.Forget(p.Process)
	eventually(t, "its memory is given back", func() bool { return m.memory.taken.Load() == 0 })
}

// Output that alternates between the streams survives when the ring shrinks at the end.
func TestEndKeepsTheIndex(t *testing.T) {
	memory := memoryOf(4 << 20)
	l := newLoggedIn(t, memory, 1<<20, 0)
	for range 2000 {
		l.writes(Stdout, "o")
		l.writes(Stderr, "e")
	}
	before := memory.taken.Load()
	l.writerDone()
	l.finish()
	if taken := memory.taken.Load(); taken >= before || taken > 8<<10 {
		t.Errorf("%d bytes of %d are taken", taken, before)
	}
	for s := range Stderr + 1 {
		if from, to := l.Offsets(s); from != 0 || to != 2000 {
			t.Errorf("%d to %d of stream %d are kept", from, to, s)
		}
	}
	l.forget()
	if taken := memory.taken.Load(); taken != 0 {
		t.Errorf("%d bytes are taken by nobody", taken)
	}
}
