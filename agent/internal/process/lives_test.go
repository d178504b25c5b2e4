package process

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Whatever happens to sessions, and with however little memory: readers get exactly what was
// written, at its offsets, and all memory is returned.
func TestLivesOfSessions(t *testing.T) {
	random := make([]byte, 3<<20)
	for i := range random {
		random[i] = byte(rand.Uint32())
	}
	file := t.TempDir() + "/random"
	if err := os.WriteFile(file, random, 0o644); err != nil {
		t.Fatal(err)
	}
	m := newManager(t, cgroups)
	m.limits.grace, m.limits.ended = 50*time.Millisecond, 4
	m.memory = memoryOf(6 << 20)
	var all sync.WaitGroup
	for i := range 8 {
		all.Add(1)
		go func() {
			defer all.Done()
			for range 12 {
				life(t, m, file, random, rand.New(rand.NewPCG(uint64(i), rand.Uint64())))
			}
		}()
	}
	all.Wait()
	for _, p := range m.List() {
		p.Kill()
		<-p.Done()
		m.Forget(p)
	}
	eventually(t, "the memory is given back", func() bool { return m.memory.taken.Load() == 0 })
}

func life(t *testing.T, m *Manager, file string, random []byte, dice *rand.Rand) {
	scripts := []string{
		"cat FILE; cat FILE >&2",
		"cat FILE & cat FILE >&2; wait",
		"head -c SIZE FILE; sleep 5 & exit 0",
		"head -c SIZE FILE >&2; (sleep 0.1; cat FILE) & exit 0",
		"dd if=FILE bs=1 count=2000 status=none & dd if=FILE bs=1 count=2000 status=none >&2; wait",
		"cat",
		"cat & exec sleep 0.05",
	}
	script := strings.NewReplacer("FILE", file, "SIZE", strconv.Itoa(1+dice.IntN(1<<20))).Replace(scripts[dice.IntN(len(scripts))])
	spec := sh(script)
	spec.Background, spec.Stdin = dice.IntN(2) == 0, dice.IntN(2) == 0 || strings.HasPrefix(script, "cat &") || script == "cat"
	if dice.IntN(3) == 0 {
		spec.Timeout = time.Duration(1+dice.IntN(100)) * time.Millisecond
	}
	p, first, err := m.Start(spec)
	if err != nil {
		t.Error(err)
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var all sync.WaitGroup
	defer all.Wait()
	if spec.Stdin {
		all.Add(1)
		go func() {
			defer all.Done()
			p.WriteStdin(ctx, bytes.NewReader(random), true)
		}()
	}
	follow := func(r *Reader, from [2]int64, most int) {
		defer all.Done()
		defer r.Close()
		exact(ctx, t, r, from, random, most)
	}
	all.Add(1)
	go follow(first, [2]int64{}, dice.IntN(8<<20)) // most read to the end, some leave early
	for range dice.IntN(3) {
		from := [2]int64{int64(dice.IntN(1 << 20)), int64(dice.IntN(1 << 20))}
		if r, err := p.Attach(from[0], from[1]); err == nil {
			all.Add(1)
			go follow(r, from, dice.IntN(3<<20))
		}
		time.Sleep(time.Duration(dice.IntN(10)) * time.Millisecond)
	}
	switch dice.IntN(3) {
	case 0:
		time.Sleep(time.Duration(dice.IntN(30)) * time.Millisecond)
		p.Kill()
	case 1:
		time.Sleep(time.Duration(dice.IntN(30)) * time.Millisecond)
		cancel()
	}
	if ctx.Err() != nil {
		p.Kill() // a "cat" whose input was interrupted would wait for more
	}
	waitFor(t, script, p)
	if !spec.Background {
		m.Forget(p)
	}
}

func waitFor(t *testing.T, script string, p *Process) {
	select {
	case <-p.Done():
	case <-time.After(20 * time.Second):
		t.Errorf("%s does not end", script)
		p.Kill()
	}
}

// exact reads up to the given amount, sometimes slowly, and checks each piece.
func exact(ctx context.Context, t *testing.T, r *Reader, from [2]int64, random []byte, most int) {
	p := make([]byte, 1+rand.IntN(200_000))
	next := [2]int64{-1, -1}
	for got := 0; got < most; {
		s, offset, n, err := r.Next(p)
		if n == 0 && err == io.EOF {
			return
		}
		if n == 0 {
			select {
			case <-r.Ready():
			case <-ctx.Done():
				return
			case <-time.After(20 * time.Second):
				t.Error("nothing comes")
				return
			}
			continue
		}
		if offset < from[s] || next[s] >= 0 && offset != next[s] {
			t.Errorf("stream %d: offset %d after %d, asked for %d", s, offset, next[s], from[s])
			return
		}
		next[s] = offset + int64(n)
		if int(next[s]) <= len(random) && !bytes.Equal(p[:n], random[offset:next[s]]) {
			t.Errorf("stream %d at %d: other bytes", s, offset)
			return
		}
		got += n
		if rand.IntN(20) == 0 {
			time.Sleep(time.Millisecond)
		}
	}
}
