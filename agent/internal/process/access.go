package process

import (
	"runtime"
	"syscall"
	"unsafe"
)

// asAccount calls f with the filesystem identity of account, so that the kernel itself decides what the
// user may reach. The later exec would only return EACCES without naming a cause.
//
// The identity belongs to a thread. It is set on a locked thread that ends with its goroutine. It
// is set by setfsuid(2), not setuid(2), because the user could otherwise signal or trace the
// thread. The agent's main thread is never used for this: main locks it.
func asAccount(account Account, f func()) {
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

// canExecute checks, with the thread's filesystem identity, the permission to execute a file or
// enter a directory.
func canExecute(path string) error {
	const (
		faccessat2 = 439 // on every architecture
		atFdCwd    = -100
		xOK        = 1
		atEAccess  = 0x200 // check the effective user ID; the real one is root's
	)
	name, err := syscall.BytePtrFromString(path)
	if err != nil {
		return err
	}
	dir := atFdCwd
	_, _, errno := syscall.Syscall6(faccessat2, uintptr(dir), uintptr(unsafe.Pointer(name)), xOK, atEAccess, 0, 0)
	if errno == 0 || errno == syscall.ENOSYS { // Linux before 5.8: let exec decide
		return nil
	}
	return errno
}
