package boot

import (
	"os"
	"syscall"
	"time"
)

const (
	// killTimeout bounds the wait for processes after SIGKILL; one that hangs in the kernel does not keep the guest up.
	killTimeout = 2 * time.Second
	// syncTimeout bounds the rest: a disk that the host does not serve any more must not either.
	syncTimeout = 20 * time.Second
)

// Fatal prints why the guest cannot run, and powers off.
func (g *Guest) Fatal(err error) {
	g.Console.Print("fatal: " + err.Error())
	g.Console.drain()
	off()
}

// PowerOff ends every process, leaves the disk clean, and powers off. childless gives the channel of the reaper.
func (g *Guest) PowerOff(grace time.Duration, childless func() <-chan struct{}) {
	time.AfterFunc(grace+killTimeout+syncTimeout, off)
	syscall.Sync()
	syscall.Kill(-1, syscall.SIGTERM)
	syscall.Kill(-1, syscall.SIGCONT)
	if !within(grace, childless()) {
		syscall.Kill(-1, syscall.SIGKILL)
		within(killTimeout, childless())
	}
	syscall.Sync()
	g.detach()
	off()
}

// detach makes the overlay's filesystem read-only and so clean. If something still writes to it (a loop device in the guest does),
// it is frozen, which leaves it as clean on the disk.
func (g *Guest) detach() {
	const (
		readOnly = syscall.MS_REMOUNT | syscall.MS_RDONLY
		fiFreeze = 0xc0045877
	)
	syscall.Mount("", "/", "", readOnly, "")
	if g.overlay == nil || syscall.Fchdir(int(g.overlay.Fd())) != nil {
		return
	}
	if syscall.Mount("", ".", "", readOnly, "") != nil {
		syscall.Syscall(syscall.SYS_IOCTL, g.overlay.Fd(), fiFreeze, 0)
	}
}

func off() {
	if os.Getpid() != 1 {
		os.Exit(1) // this is a host: reboot(2) would end it
	}
	syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	select {} // PID 1 must not return
}

func within(d time.Duration, c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-c:
		return true
	case <-timer.C:
		return false
	}
}
