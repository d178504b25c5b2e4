package process

import (
	"os"
	"syscall"
	"unsafe"
)

// terminalHolds exceeds what the kernel buffers of unread terminal output: 64 KiB and a line.
const terminalHolds = 128 << 10

const (
	tioGPGrp   = 0x540f
	tioGWinSz  = 0x5413
	tioSWinSz  = 0x5414
	tioSPtLck  = 0x40045431
	tioGPtPeer = 0x5441
)

// endOfFile is the terminal character for the end of input: Ctrl-D.
const endOfFile = 4

// Size is the size of a terminal.
type Size struct {
	Rows, Cols uint16
}

// winsize is the kernel's struct winsize.
type winsize struct {
	rows, cols, xPixel, yPixel uint16
}

// newTerminal creates a terminal that belongs to owner. It returns the agent's end and a descriptor
// of the command's end. The latter is opened through the former, so the guest's /dev/pts is not
// involved.
func newTerminal(size Size, owner Account, group uint32, hasGroup bool) (*source, int, error) {
	const path = "/dev/ptmx"
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_NOCTTY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	if err := prepare(uintptr(fd), size); err != nil {
		syscall.Close(fd)
		return nil, -1, os.NewSyscallError("ioctl "+path, err)
	}
	slave, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), tioGPtPeer, syscall.O_RDWR|syscall.O_NOCTTY|syscall.O_CLOEXEC)
	if errno != 0 {
		syscall.Close(fd)
		return nil, -1, os.NewSyscallError("open the terminal", errno)
	}
	mode, gid := uint32(0o600), -1
	if hasGroup {
		mode, gid = 0o620, int(group) // for write(1) and wall(1)
	}
	if syscall.Geteuid() == 0 {
		err = syscall.Fchown(int(slave), int(owner.UID), gid)
	}
	if err == nil {
		err = syscall.Fchmod(int(slave), mode)
	}
	var master *source
	if err == nil {
		master, err = newSource(fd, path, true)
	} else {
		syscall.Close(fd)
	}
	if err != nil {
		syscall.Close(int(slave))
		return nil, -1, err
	}
	return master, int(slave), nil
}

// prepare unlocks the command's end and sets the terminal's size. IUTF8 makes the kernel's line
// editing erase whole characters.
func prepare(fd uintptr, size Size) error {
	var locked int32
	var modes syscall.Termios
	if err := ioctl(fd, tioSPtLck, unsafe.Pointer(&locked)); err != nil {
		return err
	}
	if err := ioctl(fd, syscall.TCGETS, unsafe.Pointer(&modes)); err != nil {
		return err
	}
	modes.Iflag |= syscall.IUTF8
	if err := ioctl(fd, syscall.TCSETS, unsafe.Pointer(&modes)); err != nil {
		return err
	}
	return ioctl(fd, tioSWinSz, unsafe.Pointer(&winsize{rows: size.Rows, cols: size.Cols}))
}

// resize sets the size. For an unchanged size the kernel sends no SIGWINCH, so resize sends it to
// the foreground process group.
func (o *source) resize(size Size) (err error) {
	ctlErr := o.raw.Control(func(fd uintptr) {
		var now winsize
		want := winsize{rows: size.Rows, cols: size.Cols}
		if err = ioctl(fd, tioGWinSz, unsafe.Pointer(&now)); err != nil {
			return
		}
		if now != want {
			err = ioctl(fd, tioSWinSz, unsafe.Pointer(&want))
		} else if group := foreground(fd); group > 0 {
			syscall.Kill(-group, syscall.SIGWINCH)
		}
	})
	if ctlErr != nil {
		return ctlErr
	}
	return err
}

// foregroundGroup returns the terminal's foreground process group, or 0 if it has no such group.
func (o *source) foregroundGroup() (group int) {
	o.raw.Control(func(fd uintptr) { group = foreground(fd) })
	return group
}

func foreground(fd uintptr) int {
	var group int32
	if ioctl(fd, tioGPGrp, unsafe.Pointer(&group)) != nil {
		return 0
	}
	return int(group)
}
