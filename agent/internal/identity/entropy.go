package identity

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"
)

// Bounds of the entropy in a request, in bytes. The minimum is a full key of the kernel's
// generator.
const (
	MinEntropy = 32
	MaxEntropy = 512
)

const (
	rndAddEntropy = 0x40085203 // _IOW('R', 3, int[2])
	rndReseedCRNG = 0x5207     // _IO('R', 7)
)

// AddEntropy adds seed to the kernel's pool with full credit, and reseeds the generator. After
// that, clones of one memory image draw different random numbers.
func (Guest) AddEntropy(seed []byte) error {
	if len(seed) < MinEntropy || len(seed) > MaxEntropy {
		return fmt.Errorf("entropy: %d bytes, want %d to %d", len(seed), MinEntropy, MaxEntropy)
	}
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var pool struct { // struct rand_pool_info
		bits, size int32
		bytes      [MaxEntropy]byte
	}
	pool.bits, pool.size = int32(8*len(seed)), int32(len(seed))
	copy(pool.bytes[:], seed)
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), rndAddEntropy, uintptr(unsafe.Pointer(&pool))); errno != 0 {
		return os.NewSyscallError("RNDADDENTROPY", errno)
	}
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), rndReseedCRNG, 0); errno != 0 {
		return os.NewSyscallError("RNDRESEEDCRNG", errno)
	}
	return nil
}
