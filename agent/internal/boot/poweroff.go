package boot

import (
	"os"
	"syscall"
	"time"
)

const (
	// killTimeout bounds the wait for processes after SIGKILL. A process stuck in the kernel must
	// not keep the guest running.
	killTimeout = 2 * time.Second
	// syncTimeout bounds the remaining steps. A disk that the host no longer serves must not keep
	// the guest running either.
	syncTimeout = 20 * time.Second
)

// Fatal prints why the guest cannot run, and powers it off.
func (g *Guest) Fatal(err error) {
	g.Console.Print("fatal: " + err.Error())
	g.Console.drain()
	g.powerOff()
}

// PowerOff terminates all processes, leaves the disk clean, and powers off. childless returns the
// reaper's channel.
func (g *Guest) PowerOff(grace time.Duration, childless func() <-chan struct{}) {
	time.AfterFunc(grace+killTimeout+syncTimeout, g.powerOff)
	syscall.Sync()
	syscall.Kill(-1, syscall.SIGTERM)
	syscall.Kill(-1, syscall.SIGCONT)
	if !waitFor(grace, childless()) {
		syscall.Kill(-1, syscall.SIGKILL)
		waitFor(killTimeout, childless())
	}
	syscall.Sync()
	g.detach()
	g.powerOff()
}

// detach makes the overlay's filesystem read-only and thereby clean. If something in the guest
// still writes to it, such as a loop device, detach freezes it, which also leaves a clean disk.
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

// powerOff ends the VM. If that needs a restart, a line on the console tells the host that the
// guest was meant to power off.
func (g *Guest) powerOff() {
	if os.Getpid() != 1 {
		os.Exit(1) // this is a host, which reboot(2) would power off
	}
	command := syscall.LINUX_REBOOT_CMD_POWER_OFF
	if g.parameters[powerOffParameter] == "restart" {
		command = syscall.LINUX_REBOOT_CMD_RESTART
		g.Console.Print("power off")
		g.Console.drain()
	}
	syscall.Reboot(command)
	select {} // PID 1 must not return
}

func waitFor(d time.Duration, c <-chan struct{}) bool {
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
