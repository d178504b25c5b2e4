package process

import (
	"bytes"
	"io"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"
)

// logged is a Log with a test as its writer.
type logged struct {
	*Log
	t    *testing.T
	r, w int
}

func newLogged(t *testing.T, kept int, grace time.Duration) *logged {
	t.Helper()
	return newLoggedIn(t, newMemory(), kept, grace)
}

func newLoggedIn(t *testing.T, memory *memory, kept int, grace time.Duration) *logged {
	t.Helper()
	l, err := newLog(memory, kept, grace)
	if err != nil {
		t.Fatal(err)
	}
	l.addWriters(1)
	r, w, err := pipe()
	if err != nil {
		t.Fatal(err)
	}
	syscall.SetNonblock(r, true)
	t.Cleanup(func() { syscall.Close(r); syscall.Close(w) })
	return &logged{l, t, r, w}
}

// write writes data, which must fit into a pipe, and returns a channel that is closed when the log
// has taken it.
func (l *logged) write(s Stream, data string) <-chan struct{} {
	l.t.Helper()
	if _, err := syscall.Write(l.w, []byte(data)); err != nil {
		l.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for left := len(data); left > 0; {
			n, _ := l.take(l.r, s, left)
			left -= n
		}
	}()
	return done
}

func (l *logged) writes(s Stream, data string) {
	l.t.Helper()
	select {
	case <-l.write(s, data):
	case <-time.After(10 * time.Second):
		l.t.Fatal("the log does not take it")
	}
}

// blocked checks that the log does not take what is being written.
func (l *logged) blocked(s Stream, done <-chan struct{}) {
	l.t.Helper()
	seen := 0 // checks repeatedly, so that the writer has seen it and sleeps
	eventually(l.t, "there is no room", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		if seen++; len(l.room(s)) > 0 {
			seen = 0
		}
		return seen == 5
	})
	if isClosed(done) {
		l.t.Fatal("it was taken")
	}
}

// fill writes as much to stdout as fits without dropping output.
func (l *logged) fill() int {
	whole := l.capacity + ringSlack
	for size := whole; size > 0; size -= 32 << 10 {
		l.writes(Stdout, strings.Repeat("f", min(size, 32<<10)))
	}
	return whole
}

type piece struct {
	stream Stream
	offset int64
	text   string
}

// rest reads the output available.
func rest(r *Reader) (pieces []piece, err error) {
	p := make([]byte, 1<<20)
	for {
		s, offset, n, err := r.Next(p)
		if n == 0 {
			return pieces, err
		}
		pieces = append(pieces, piece{s, offset, string(p[:n])})
	}
}

func expect(t *testing.T, r *Reader, want ...piece) {
	t.Helper()
	got, _ := rest(r)
	ok := len(got) == len(want)
	for i := range want {
		ok = ok && got[i] == want[i]
	}
	if !ok {
		t.Errorf("got %.300v, want %.300v", got, want)
	}
}

func TestLogGivesStreamsInTheirOrder(t *testing.T) {
	l := newLogged(t, 1000, time.Hour)
	early := l.attach([2]int64{})
	for _, p := range []piece{{Stdout, 0, "one"}, {Stdout, 0, "two"}, {Stderr, 0, "bad"}, {Stdout, 0, "three"}} {
		l.writes(p.stream, p.text)
	}
	want := []piece{{Stdout, 0, "onetwo"}, {Stderr, 0, "bad"}, {Stdout, 6, "three"}}
	expect(t, early, want...)
	expect(t, early)
	expect(t, l.attach([2]int64{}), want...)
	expect(t, l.attach([2]int64{4, 0}), piece{Stdout, 4, "wo"}, piece{Stderr, 0, "bad"}, piece{Stdout, 6, "three"})
	expect(t, l.attach([2]int64{6, 3}), piece{Stdout, 6, "three"})
	ahead := l.attach([2]int64{13, 3})
	expect(t, ahead)
	l.writes(Stdout, "0123")
	l.writes(Stderr, "x")
	expect(t, ahead, piece{Stdout, 13, "23"}, piece{Stderr, 3, "x"})
	if _, err := rest(early); err != nil {
		t.Errorf("an end before the end: %v", err)
	}
	l.writerDone()
	if _, err := rest(early); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
}

func TestLogDropsTheOldestWithoutAReader(t *testing.T) {
	l := newLogged(t, 1000, 0)
	l.writes(Stderr, "gone")
	for range 100 {
		l.writes(Stdout, strings.Repeat("0123456789", 1000))
	}
	l.writes(Stderr, "last")
	for s, want := range [][2]int64{{999004, 1000000}, {4, 8}} {
		if from, to := l.Offsets(Stream(s)); from != want[0] || to != want[1] {
			t.Errorf("stream %d: %d to %d", s, from, to)
		}
	}
	r := l.attach([2]int64{10, 0})
	expect(t, r, piece{Stdout, 999004, strings.Repeat("0123456789", 100)[4:]}, piece{Stderr, 4, "last"})
}

func TestLogWaitsForItsSlowestReader(t *testing.T) {
	l := newLogged(t, 1000, 0)
	slow, fast := l.attach([2]int64{}), l.attach([2]int64{})
	size := l.fill()
	expect(t, fast, piece{Stdout, 0, strings.Repeat("f", size)})
	done := l.write(Stdout, "more")
	l.blocked(Stdout, done)
	if _, _, n, _ := slow.Next(make([]byte, 3)); n != 3 {
		t.Fatalf("got %d", n)
	}
	eventually(t, "as much is read as was made room for", func() bool { _, end := l.Offsets(Stdout); return end == int64(size)+3 })
	expect(t, fast, piece{Stdout, int64(size), "mor"})
	l.blocked(Stdout, done)
	slow.Close()
	<-done
	expect(t, fast, piece{Stdout, int64(size) + 3, "e"})
}

func TestLogWaitsForAReaderToCome(t *testing.T) {
	const grace = 100 * time.Millisecond
	start := time.Now()
	l := newLogged(t, 1000, grace)
	size := l.fill()
	l.writes(Stdout, "more")
	if waited := time.Since(start); waited < grace {
		t.Errorf("it waited only %v", waited)
	}
	r := l.attach([2]int64{})
	if from, _ := l.Offsets(Stdout); from != int64(size)+4-1000 {
		t.Errorf("%d is the oldest", from)
	}
	rest(r)
	l.fill()
	r.Close()
	left := time.Now()
	l.writes(Stdout, "more")
	if waited := time.Since(left); waited < grace {
		t.Errorf("when it had left, only %v", waited)
	}
}

func TestLogLosesNothingWhileAReaderComesBack(t *testing.T) {
	l := newLogged(t, 1000, time.Hour)
	r := l.attach([2]int64{})
	size := l.fill()
	r.Next(make([]byte, 100))
	r.Close()
	done := l.write(Stdout, "more")
	l.blocked(Stdout, done) // output that was sent but may not have arrived is not dropped either
	r = l.attach([2]int64{50, 0})
	got, _ := rest(r)
	<-done
	then, _ := rest(r)
	text := ""
	for _, p := range append(got, then...) {
		if p.offset != int64(50+len(text)) {
			t.Fatalf("a piece at %d, have %d", p.offset, len(text))
		}
		text += p.text
	}
	if text != strings.Repeat("f", size-50)+"more" {
		t.Errorf("%d bytes", len(text))
	}
}

func TestLogWatcherEndsTheWait(t *testing.T) {
	l := newLogged(t, 1000, time.Hour)
	l.fill()
	done := l.write(Stdout, "more")
	l.blocked(Stdout, done)
	stop := l.watch()
	<-done
	if n := l.followers(); n != 1 {
		t.Errorf("%d follow", n)
	}
	stop()
	l.writes(Stdout, "more")
	if n := l.followers(); n != 0 {
		t.Errorf("%d follow", n)
	}
}

func TestLogThatIsForgottenWaitsForNobody(t *testing.T) {
	l := newLogged(t, 1000, time.Hour)
	l.fill()
	done := l.write(Stdout, "more")
	l.blocked(Stdout, done)
	l.forget()
	<-done
	l.writerDone()
	if !l.gone() || l.attach([2]int64{}) != nil {
		t.Error("it is still there")
	}
}

// Streams that alternate with every byte cannot make the index larger than the output.
func TestLogIndexIsBounded(t *testing.T) {
	const kept = 6400
	l := newLogged(t, kept, 0)
	for i := range 1000 {
		l.writes(Stream(i%2), "x")
	}
	if n := len(l.stretches); n > kept/stretchBytes+1 {
		t.Errorf("%d pieces", n)
	}
	r := l.attach([2]int64{})
	got, _ := rest(r)
	if last := got[len(got)-1]; last != (piece{Stderr, 499, "x"}) || len(got) < kept/stretchBytes {
		t.Errorf("%d pieces, the last is %v", len(got), last)
	}
	// With a reader, writing blocks instead of dropping output.
	for i := range kept/stretchBytes + 1 {
		l.writes(Stream(i%2), "y")
	}
	done := l.write(Stderr, "z")
	l.blocked(Stderr, done)
	r.Next(make([]byte, 1))
	<-done
	got, _ = rest(r)
	if last := got[len(got)-1]; last != (piece{Stderr, 500 + kept/stretchBytes/2, "z"}) || len(got) != kept/stretchBytes+1 {
		t.Errorf("%d pieces, the last is %v", len(got), last)
	}
}

// With any ring size, two readers of different speed get every byte at its offset, also where the
// ring wraps.
func TestLogIsExact(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	l := newLogged(t, 5000, 0)
	var want [2]bytes.Buffer
	type follower struct {
		*Reader
		got [2]bytes.Buffer
	}
	var followers []*follower
	for range 3 {
		followers = append(followers, &follower{Reader: l.attach([2]int64{})})
	}
	for range 500 {
		data := make([]byte, 1+random.IntN(3000))
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		s := Stream(random.IntN(2))
		want[s].Write(data)
		done := l.write(s, string(data))
		for taken := false; !taken; {
			select {
			case <-done:
				taken = true
			default:
			}
			for i, f := range followers {
				for range i {
					p := make([]byte, 1+random.IntN(4000*i))
					s, offset, n, _ := f.Next(p)
					if n > 0 && offset != int64(f.got[s].Len()) {
						t.Fatalf("offset %d, have %d", offset, f.got[s].Len())
					}
					f.got[s].Write(p[:n])
				}
			}
			if !taken { // possibly waiting for the slowest reader
				p := make([]byte, 100)
				s, _, n, _ := followers[0].Next(p)
				followers[0].got[s].Write(p[:n])
			}
		}
	}
	for _, f := range followers {
		pieces, _ := rest(f.Reader)
		for _, p := range pieces {
			f.got[p.stream].WriteString(p.text)
		}
		for s := range want {
			if !bytes.Equal(f.got[s].Bytes(), want[s].Bytes()) {
				t.Errorf("stream %d: %d bytes, want %d", s, f.got[s].Len(), want[s].Len())
			}
		}
	}
}
