package process

import (
	"sync/atomic"
	"syscall"
)

const (
	// memoryShare is the divisor of the guest's memory for the output of all sessions together.
	memoryShare = 16
	// firstRing is the memory that a session's output always gets: without it no command can run.
	firstRing = 32 << 10
	// largePipe is the enlarged size of a pipe that has carried this much data. It lets one end
	// work while the other is busy. Most commands transfer little.
	largePipe = 256 << 10
)

// memory accounts for the output of all sessions and for their enlarged pipes. It bounds them
// together, so that a guest with much output and few readers does not run out of memory.
type memory struct {
	total func() int // the bound
	taken atomic.Int64
}

func newMemory() *memory { return &memory{total: guestShare} }

// guestShare reads the guest's memory each time, since it may grow.
func guestShare() int {
	var info syscall.Sysinfo_t
	if syscall.Sysinfo(&info) != nil {
		return 0
	}
	return int(uint64(info.Totalram) * uint64(info.Unit) / memoryShare)
}

// grant takes size bytes if at least as much remains. The more memory is free, the more a session
// gets.
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

// add takes size bytes, or returns them if size is negative.
func (m *memory) add(size int) { m.taken.Add(int64(size)) }

func mapRing(size int) ([]byte, error) {
	return syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
}
