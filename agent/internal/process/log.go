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

// Stream is one of a command's output streams.
type Stream int

// The output streams. All output of a terminal is Stdout.
const (
	Stdout Stream = iota
	Stderr
)

const (
	// ringSlack is the room in a ring beyond what it keeps, for reading ahead. In a small ring it
	// is half of the ring.
	ringSlack = 256 << 10
	// stretchBytes is how many bytes of output each index entry must stand for. It bounds the index
	// when the streams alternate with every byte.
	stretchBytes = 64
)

// Log keeps a session's most recent output, both streams in the order in which the agent read them,
// for any number of readers. Output that a reader has not read yet is never dropped; writing blocks
// instead. Without a reader, writing blocks until a deadline and then drops the oldest output.
//
// The ring grows as needed, within the memory for all sessions. It is memory-mapped instead of
// allocated: untouched pages cost nothing, the garbage collector keeps no reserve for it, and its
// memory is freed at once. It is used only under the lock and only while it has users.
type Log struct {
	memory   *memory
	capacity int // bytes kept for future readers, if memory allows
	grace    time.Duration

	mu         sync.Mutex
	space      *sync.Cond // signals that room may have become available
	ring       []byte
	start, end int64     // positions in the output: of the oldest byte in the ring, and after the newest
	from, to   [2]int64  // the same positions as offsets in each stream
	stretches  []stretch // the output between start and end
	readers    []*Reader
	deadline   time.Time // until which writing waits for a reader
	watchers   int
	writers    int // pumps that have not ended
	users      int // users of the ring: the session, its pumps and its readers
	pipes      int // memory that enlarged pipes of the session take
	finished   bool
	forgotten  bool
}

// stretch is a run of output of one stream. Adjacent stretches belong to different streams.
type stretch struct {
	end    int64
	stream Stream
}

// newLog returns a log that keeps up to capacity bytes, as memory allows. Its session is its first
// user. Without a reader, writing waits for the time grace from now, and again from when the last
// reader leaves.
func newLog(memory *memory, capacity int, grace time.Duration) (*Log, error) {
	size := min(firstRing, capacity+ringSlack)
	ring, err := mapRing(size)
	if err != nil {
		return nil, fmt.Errorf("allocate output buffer: %w", err)
	}
	memory.add(size)
	l := &Log{memory: memory, capacity: capacity, grace: grace, ring: ring, deadline: time.Now().Add(grace), users: 1}
	l.space = sync.NewCond(&l.mu)
	return l, nil
}

// keeps returns how many bytes are kept for future readers.
func (l *Log) keeps() int { return min(l.capacity, len(l.ring)-min(ringSlack, len(l.ring)/2)) }

// grow enlarges the ring until it holds all output, as far as limits allow.
func (l *Log) grow() {
	held := l.end - l.start
	for len(l.ring) > 0 && len(l.ring) < l.capacity+ringSlack && (held > int64(l.keeps()) || len(l.stretches) >= l.maxStretches()) {
		size := min(2*len(l.ring), l.capacity+ringSlack)
		if !l.memory.grant(size - len(l.ring)) {
			return
		}
		if !l.resize(size) {
			l.memory.add(len(l.ring) - size)
			return
		}
	}
}

// resize moves the output to a ring of the given size. It returns false if there is no memory for
// it.
func (l *Log) resize(size int) bool {
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

// finish ends the output: what is kept now stays, in as little memory as it needs, and the pipes
// are gone.
func (l *Log) finish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trim()
	l.finished = true
	l.memory.add(-l.pipes)
	l.pipes = 0
	page := os.Getpagesize()
	old, size := len(l.ring), max(1, (int(l.end-l.start)+page-1)/page)*page
	if size < old && l.resize(size) {
		l.memory.add(size - old)
	}
}

// enlarge enlarges a pipe of the session, if memory allows.
func (l *Log) enlarge(pipe uintptr) {
	const setPipeSize = 1031
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ring == nil || l.finished || !l.memory.grant(largePipe) {
		return
	}
	if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, pipe, setPipeSize, largePipe); errno != 0 {
		l.memory.add(-largePipe)
		return
	}
	l.pipes += largePipe
}

// removeUser removes a user. It is called with the lock held.
func (l *Log) removeUser() {
	if l.users--; l.users == 0 {
		l.memory.add(-len(l.ring) - l.pipes)
		syscall.Munmap(l.ring)
		l.ring, l.pipes = nil, 0
	}
}

// forget ends the wait for future readers. The log remains until the current readers have left.
func (l *Log) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.forgotten {
		return
	}
	l.forgotten = true
	l.grace, l.deadline = 0, time.Time{}
	l.space.Broadcast()
	l.removeUser()
}

// Offsets returns the range of offsets that is kept of a stream.
func (l *Log) Offsets(s Stream) (from, to int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trim()
	return l.from[s], l.to[s]
}

// size returns the number of bytes kept.
func (l *Log) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trim()
	return int(l.end - l.start)
}

// followers returns how many clients follow the session.
func (l *Log) followers() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.readers) + l.watchers
}

// watch adds a client that follows without output, which ends the wait for a reader.
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

// addWriters announces n goroutines that call take, and writerDone at the end.
func (l *Log) addWriters(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writers += n
	l.users += n
}

func (l *Log) writerDone() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.removeUser()
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

// trim drops output beyond what is kept, unless a reader still needs it.
func (l *Log) trim() {
	if l.finished {
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

// awaitSpace waits until there may be room.
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

// Reader reads a session's output from a position on.
type Reader struct {
	log    *Log
	at     int64    // position in the output
	offset [2]int64 // offsets of the streams at that position
	skip   [2]int64 // offsets below which output is skipped
	ready  chan struct{}
}

// attach returns a reader of the kept output from the given offsets on. It returns nil if the log
// is gone.
func (l *Log) attach(from [2]int64) *Reader {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ring == nil || l.forgotten {
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

// Ready receives a value when Next may have more to return.
func (r *Reader) Ready() <-chan struct{} { return r.ready }

// Next copies the next output of one stream to p, and returns the offset of its first byte. It does
// not block: n is 0 if there is no output yet, and err is io.EOF after the end of the output.
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

// Close detaches the reader. The command continues without it.
func (r *Reader) Close() {
	l := r.log
	l.mu.Lock()
	defer l.mu.Unlock()
	l.readers = slices.DeleteFunc(l.readers, func(other *Reader) bool { return other == r })
	if len(l.readers) == 0 {
		l.deadline = time.Now().Add(l.grace)
	}
	l.space.Broadcast()
	l.removeUser()
}

// all exceeds the result of any read.
const all = math.MaxInt
