package process

import (
	"sync/atomic"
	"syscall"
)

const (
	// memoryShare of the guest's memory is what the outputs of all sessions may take together.
	memoryShare = 16
	// firstRing is what the output of a session may always take: without it no command can run.
	firstRing = 32 << 10
	// largePipe is the size of a pipe through which as much goes: one end then goes on while the other is busy. Most commands read and
	// write little.
	largePipe = 256 << 10
)

// memory is what the outputs of all sessions take, and their pipes beyond the usual. It bounds them together: a guest with much
// to say to nobody, or to many at once, must not run out of memory for what its agent keeps.
type memory struct {
	total func() int // what they may take
	taken atomic.Int64
}

func newMemory() *memory { return &memory{total: guestShare} }

// guestShare asks each time: a guest may get more memory while it runs.
func guestShare() int {
	var info syscall.Sysinfo_t
	if syscall.Sysinfo(&info) != nil {
		return 0
	}
	return int(uint64(info.Totalram) * uint64(info.Unit) / memoryShare)
}

// grant takes size bytes if as much is left afterwards: the more there is, the more one session gets.
func (m *memory) grant(size int) bool {
	for {
		taken := m.taken.Load()
		if int64(m.total())-taken < 2*int64(size) {
			return false
		}
		if m.taken.CompareAndSwap(taken, taken+int64(size)) {
			return true
		}
	}
}

// add takes size bytes, or gives them back if it is negative.
func (m *memory) add(size int) { m.taken.Add(int64(size)) }

func mapRing(size int) ([]byte, error) {
	return syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
}
