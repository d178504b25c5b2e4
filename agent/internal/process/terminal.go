package process

import (
	"os"
	"syscall"
	"unsafe"
)

// terminalHolds is more than the kernel keeps of what was written to a terminal and not read: 64 KiB and a line's buffer.
const terminalHolds = 128 << 10

const (
	tioGPGrp   = 0x540f
	tioGWinSz  = 0x5413
	tioSWinSz  = 0x5414
	tioSPtLck  = 0x40045431
	tioGPtPeer = 0x5441
)

// endOfFile is the character that ends the input of a terminal: Ctrl-D.
const endOfFile = 4

// Size is a terminal's.
type Size struct {
	Rows, Cols uint16
}

// winsize is the kernel's struct.
type winsize struct {
	rows, cols, xPixel, yPixel uint16
}

// newTerminal opens a terminal that belongs to owner. It returns the agent's end and a descriptor of the command's. The latter
// comes from the former, whatever the guest has made of /dev/pts.
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

// prepare unlocks the command's end and gives the terminal its size. Characters are UTF-8, so that the line editing of the kernel
// erases whole ones.
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

// resize sets the size. Where it is the size already, the kernel would tell nobody: then the foreground process group is told here.
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

// foregroundGroup returns the terminal's foreground process group, 0 where it has none.
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
