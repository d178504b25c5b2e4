package process

import (
	"runtime"
	"syscall"
	"unsafe"
)

// As calls f with the filesystem identity of account, so that the kernel itself decides what the
// user may reach.
//
// The identity belongs to a thread. It is set on a locked thread that ends with its goroutine, so
// nothing has to be restored. It is set by setfsuid(2), not setuid(2), because the user could
// otherwise signal or trace the thread. Without capabilities the thread cannot read what belongs to
// other users in /proc either. The agent's main thread is never used for this: main locks it.
//
// A panic in f ends the agent.
func (account Account) As(f func()) {
	if account.UID == 0 || syscall.Geteuid() != 0 {
		f()
		return
	}
	done := make(chan struct{})
	var failed syscall.Errno
	go func() {
		defer close(done)
		runtime.LockOSThread()
		groups := account.Groups
		if _, _, failed = syscall.RawSyscall(syscall.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0])), 0); failed != 0 {
			return
		}
		// These two report no errors; the second call returns the identity that the first has set.
		syscall.RawSyscall(syscall.SYS_SETFSGID, uintptr(account.GID), 0, 0)
		syscall.RawSyscall(syscall.SYS_SETFSUID, uintptr(account.UID), 0, 0)
		gid, _, _ := syscall.RawSyscall(syscall.SYS_SETFSGID, uintptr(account.GID), 0, 0)
		uid, _, _ := syscall.RawSyscall(syscall.SYS_SETFSUID, uintptr(account.UID), 0, 0)
		if failed = dropCapabilities(); uint32(gid) != account.GID || uint32(uid) != account.UID {
			failed = syscall.EPERM
		}
		if failed == 0 {
			f()
		}
	}()
	<-done
	if failed != 0 {
		panic("cannot act as user " + account.Name + ": " + failed.Error()) // root can
	}
}

// dropCapabilities drops all capabilities of the thread.
func dropCapabilities() syscall.Errno {
	const version3 = 0x20080522
	header := struct {
		version uint32
		pid     int32
	}{version: version3}
	var none [2]struct{ effective, permitted, inheritable uint32 }
	_, _, errno := syscall.RawSyscall(syscall.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&none)), 0)
	return errno
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
