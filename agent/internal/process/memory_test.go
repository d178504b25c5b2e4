package process

import (
	"strings"
	"testing"
	"time"
)

func memoryOf(total int) *memory { return &memory{total: func() int { return total }} }

// One that writes little takes little; one that writes much gets no more than half of what is left.
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

// However many there are, and however slow their readers, they stay within what all may take and the first ring of each; and lose nothing.
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

// Pipes through which much goes are large while there is memory, and give it back.
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
			_, err := p.WriteStdin(t.Context(), strings.NewReader(input), true)
			written <- err
		}()
		stdout, _ := finish(t, p)
		if err := <-written; err != nil || stdout != input {
			t.Errorf("%d bytes came back, %v", len(stdout), err)
		}
		p.Log.mu.Lock()
		if p.Log.pipes != want {
			t.Errorf("of %d, the pipes take %d", total, p.Log.pipes)
		}
		p.Log.mu.Unlock()
		m.Forget(p.Process)
		eventually(t, "its memory is given back", func() bool { return m.memory.taken.Load() == 0 })
	}
}
