package process

import (
	"runtime"
	"syscall"
	"unsafe"
)

// as calls f with the filesystem identity of account, so that the kernel itself answers what this user can reach: the exec
// that comes later can only say EACCES, and not of what.
//
// The identity is a thread's. It is set on a thread that ends with the goroutine (it is locked and never unlocked), by
// setfsuid(2) because that, unlike setuid(2), does not let the user signal or trace the thread meanwhile. The agent's
// main thread stays out of this: main holds it.
func as(account Account, f func()) {
	if account.UID == 0 || syscall.Geteuid() != 0 {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		groups := account.Groups
		syscall.RawSyscall(syscall.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0])), 0)
		syscall.RawSyscall(syscall.SYS_SETFSGID, uintptr(account.GID), 0, 0)
		syscall.RawSyscall(syscall.SYS_SETFSUID, uintptr(account.UID), 0, 0)
		f()
	}()
	<-done
}

// canExecute asks, with the thread's filesystem identity, for the right to execute a file or to enter a directory.
func canExecute(path string) error {
	const (
		faccessat2 = 439 // the same number on every architecture
		atFdCwd    = -100
		xOK        = 1
		atEAccess  = 0x200 // without it the real uid counts, which is root's
	)
	name, err := syscall.BytePtrFromString(path)
	if err != nil {
		return err
	}
	dir := atFdCwd
	_, _, errno := syscall.Syscall6(faccessat2, uintptr(dir), uintptr(unsafe.Pointer(name)), xOK, atEAccess, 0, 0)
	if errno == 0 || errno == syscall.ENOSYS { // before Linux 5.8: the exec will tell
		return nil
	}
	return errno
}
