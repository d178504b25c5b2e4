package process

import (
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"sort"
	"sync"
	"syscall"
	"time"
)

// Stream is one of a command's two output streams.
type Stream int

// The streams. All output of a terminal is Stdout.
const (
	Stdout Stream = iota
	Stderr
)

const (
	// ringSlack is how much is read beyond what is kept before the oldest output must go. It is half of a small ring.
	ringSlack = 256 << 10
	// stretchBytes is how much output there is for each entry of the index that may be kept: it bounds the index of output that changes
	// between the streams with every byte.
	stretchBytes = 64
)

// Log keeps the last output of a session, both streams in the order in which the agent has read them, for any number of
// readers. Nothing is dropped that a reader has yet to take: the one that writes to the log waits instead. Without a reader it waits
// until a deadline, and then drops the oldest.
//
// The ring grows with what there is to keep, as far as the memory for all sessions allows. It is mapped, not allocated:
// pages that were never written cost nothing, the garbage collector does not keep as much again in reserve, and the
// memory goes back at once. It is used only under the lock and while there are users.
type Log struct {
	memory *memory
	most   int // bytes that are kept for readers to come, if there is memory for it
	grace  time.Duration

	mu         sync.Mutex
	space      *sync.Cond // room may have been made
	ring       []byte
	start, end int64     // positions in the output, of the oldest byte in the ring and after the newest
	from, to   [2]int64  // the same as offsets in the streams
	stretches  []stretch // what lies between
	readers    []*Reader
	deadline   time.Time // for a reader to come
	watchers   int
	writers    int // pumps that have not come to their end
	users      int // of the ring: its session, pumps, readers
	pipes      int // bytes of memory that pipes of its session take
	settled    bool
}

// stretch is a piece of output of one stream. Neighbours are of different streams.
type stretch struct {
	end    int64
	stream Stream
}

// newLog returns a log that keeps most bytes if memory allows, and whose session is its first user. It waits for a reader for
// the time grace from now, and from the leaving of a last one.
func newLog(memory *memory, most int, grace time.Duration) (*Log, error) {
	size := min(firstRing, most+ringSlack)
	ring, err := mapRing(size)
	if err != nil {
		return nil, fmt.Errorf("no memory for the output: %w", err)
	}
	memory.add(size)
	l := &Log{memory: memory, most: most, grace: grace, ring: ring, deadline: time.Now().Add(grace), users: 1}
	l.space = sync.NewCond(&l.mu)
	return l, nil
}

// keeps returns how many bytes are kept for readers to come.
func (l *Log) keeps() int { return min(l.most, len(l.ring)-min(ringSlack, len(l.ring)/2)) }

// grow makes the ring large enough to keep all that is in it, as far as that is allowed.
func (l *Log) grow() {
	held := l.end - l.start
	for len(l.ring) > 0 && len(l.ring) < l.most+ringSlack && (held > int64(l.keeps()) || len(l.stretches) >= l.maxStretches()) {
		size := min(2*len(l.ring), l.most+ringSlack)
		if !l.memory.grant(size - len(l.ring)) {
			return
		}
		if !l.move(size) {
			l.memory.add(len(l.ring) - size)
			return
		}
	}
}

// move gives what is in the ring another one of that size, unless there is no memory for it.
func (l *Log) move(size int) bool {
	ring, err := mapRing(size)
	if err != nil {
		return false
	}
	for at := l.start; at < l.end; {
		from, to := at%int64(len(l.ring)), at%int64(size)
		at += int64(copy(ring[to:], l.ring[from:min(from+l.end-at, int64(len(l.ring)))]))
	}
	syscall.Munmap(l.ring)
	l.ring = ring
	return true
}

// settle says that there will be no more output, and that the pipes are gone: what is kept by now stays, and takes no more
// memory than it needs.
func (l *Log) settle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trim()
	l.settled = true
	l.memory.add(-l.pipes)
	l.pipes = 0
	page := os.Getpagesize()
	old, size := len(l.ring), max(1, (int(l.end-l.start)+page-1)/page)*page
	if size < old && l.move(size) {
		l.memory.add(size - old)
	}
}

// enlarge makes a pipe of the session a large one, if there is memory for that.
func (l *Log) enlarge(pipe uintptr) {
	const setPipeSize = 1031
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ring == nil || l.settled || !l.memory.grant(largePipe) {
		return
	}
	if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, pipe, setPipeSize, largePipe); errno != 0 {
		l.memory.add(-largePipe)
		return
	}
	l.pipes += largePipe
}

// leave is called with the lock.
func (l *Log) leave() {
	if l.users--; l.users == 0 {
		l.memory.add(-len(l.ring) - l.pipes)
		syscall.Munmap(l.ring)
		l.ring, l.pipes = nil, 0
	}
}

// forget says that there are no readers to come. The log lives on until those that there are have left.
func (l *Log) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.grace, l.deadline = 0, time.Time{}
	l.space.Broadcast()
	l.leave()
}

// Offsets returns from which offset of a stream to which it is kept.
func (l *Log) Offsets(s Stream) (from, to int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trim()
	return l.from[s], l.to[s]
}

// size returns how many bytes are kept.
func (l *Log) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trim()
	return int(l.end - l.start)
}

// followers returns how many follow the session.
func (l *Log) followers() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.readers) + l.watchers
}

// watch announces someone who wants no output: the wait for a reader ends.
func (l *Log) watch() (stop func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watchers++
	l.deadline = time.Time{}
	l.space.Broadcast()
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.watchers--
	}
}

// addWriters announces goroutines that call take, and writerDone in the end.
func (l *Log) addWriters(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writers += n
	l.users += n
}

func (l *Log) writerDone() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leave()
	if l.writers--; l.writers == 0 {
		l.wakeReaders()
	}
}

func (l *Log) wakeReaders() {
	for _, r := range l.readers {
		r.notify()
	}
}

// take waits for room and reads once from fd, at most the given number of bytes.
func (l *Log) take(fd int, s Stream, most int) (n int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	room := l.room(s)
	for ; len(room) == 0; room = l.room(s) {
		l.awaitSpace()
	}
	n, err = read(fd, room[:min(len(room), most)])
	if n > 0 {
		l.end += int64(n)
		l.to[s] += int64(n)
		if last := len(l.stretches) - 1; last >= 0 && l.stretches[last].stream == s {
			l.stretches[last].end = l.end
		} else {
			l.stretches = append(l.stretches, stretch{l.end, s})
		}
		l.wakeReaders()
	}
	return n, err
}

func read(fd int, p []byte) (int, error) {
	for {
		n, err := syscall.Read(fd, p)
		if err != syscall.EINTR {
			return max(n, 0), err
		}
	}
}

// room returns the part of the ring that may be written now.
func (l *Log) room(s Stream) []byte {
	l.trim()
	if last := len(l.stretches) - 1; last >= l.maxStretches() && l.stretches[last].stream != s {
		return nil
	}
	size := int64(len(l.ring))
	at := l.end % size
	return l.ring[at : at+min(size-at, size-(l.end-l.start))]
}

func (l *Log) maxStretches() int { return l.keeps() / stretchBytes }

// trim drops what is older than what is kept, as far as nobody has yet to take it.
func (l *Log) trim() {
	if l.settled {
		return
	}
	l.grow()
	oldest := l.end - int64(l.keeps())
	if spare := len(l.stretches) - l.maxStretches(); spare > 0 {
		oldest = max(oldest, l.stretches[spare-1].end)
	}
	if len(l.readers) == 0 && time.Now().Before(l.deadline) {
		return
	}
	for _, r := range l.readers {
		oldest = min(oldest, r.at)
	}
	for l.start < oldest {
		first := l.stretches[0]
		n := min(first.end, oldest) - l.start
		l.start += n
		l.from[first.stream] += n
		if l.start == first.end {
			l.stretches = l.stretches[1:]
		}
	}
}

// awaitSpace waits until there may be more room.
func (l *Log) awaitSpace() {
	if len(l.readers) == 0 {
		defer time.AfterFunc(time.Until(l.deadline), func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.space.Broadcast()
		}).Stop()
	}
	l.space.Wait()
}

// Reader takes the output of a session from some place on.
type Reader struct {
	log    *Log
	at     int64    // its place in the output
	offset [2]int64 // of the streams, there
	skip   [2]int64 // what comes before these offsets is not wanted
	ready  chan struct{}
}

// attach returns a reader of what is kept of the streams from the given offsets on, or nil if the log is gone.
func (l *Log) attach(from [2]int64) *Reader {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ring == nil {
		return nil
	}
	l.trim()
	r := &Reader{log: l, at: l.start, offset: l.from, skip: from, ready: make(chan struct{}, 1)}
	l.readers = append(l.readers, r)
	l.users++
	if l.writers == 0 || l.end > l.start {
		r.notify()
	}
	return r
}

func (r *Reader) notify() {
	select {
	case r.ready <- struct{}{}:
	default:
	}
}

// Ready has a value when Next may have something to say that it did not say before.
func (r *Reader) Ready() <-chan struct{} { return r.ready }

// Next copies to p what comes next of one stream, and returns the offset of its first byte. It does not wait: there is
// nothing yet if n is 0, and nothing ever if err is io.EOF.
func (r *Reader) Next(p []byte) (s Stream, offset int64, n int, err error) {
	l := r.log
	l.mu.Lock()
	defer l.mu.Unlock()
	for r.at < l.end {
		piece := l.stretches[sort.Search(len(l.stretches), func(i int) bool { return l.stretches[i].end > r.at })]
		length := piece.end - r.at
		s, offset = piece.stream, r.offset[piece.stream]
		if unwanted := r.skip[s] - offset; unwanted > 0 {
			r.advance(s, min(unwanted, length))
			continue
		}
		from := int(r.at % int64(len(l.ring)))
		p = p[:min(int64(len(p)), length)]
		n = copy(p, l.ring[from:])
		n += copy(p[n:], l.ring)
		r.advance(s, int64(n))
		return s, offset, n, nil
	}
	if l.writers == 0 {
		err = io.EOF
	}
	return 0, 0, 0, err
}

func (r *Reader) advance(s Stream, n int64) {
	r.at += n
	r.offset[s] += n
	r.log.space.Broadcast()
}

// Close lets the command go on without the reader.
func (r *Reader) Close() {
	l := r.log
	l.mu.Lock()
	defer l.mu.Unlock()
	l.readers = slices.DeleteFunc(l.readers, func(other *Reader) bool { return other == r })
	if len(l.readers) == 0 {
		l.deadline = time.Now().Add(l.grace)
	}
	l.space.Broadcast()
	l.leave()
}

// all is more than any read gets.
const all = math.MaxInt
