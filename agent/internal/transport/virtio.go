package transport

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"
)

// PortName is the host's name for the virtio port.
const PortName = "squib.agent"

// virtioPort is a port of a virtio console device.
//
// Read returns 0 bytes while the host's end is closed. Waiting for the host uses no CPU time all
// the same: the runtime's poller is edge-triggered, so the permanent EPOLLHUP of such a port wakes
// it only once, and later data wakes it again.
type virtioPort struct {
	*os.File
	raw syscall.RawConn
}

// openVirtioPort opens a port for the lifetime of the agent. The kernel allows one opener at a
// time.
func openVirtioPort(path string) (*virtioPort, error) {
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_NONBLOCK|syscall.O_CLOEXEC|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	file := os.NewFile(uintptr(fd), path)
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &virtioPort{file, raw}, nil
}

// findVirtioPort returns the device of the port called name. If no port has that name, it returns
// the names of the ports that exist.
func findVirtioPort(sys, name string) (device string, others []string) {
	files, _ := filepath.Glob(sys + "/class/virtio-ports/*/name")
	for _, file := range files {
		content, _ := os.ReadFile(file)
		found := strings.TrimSpace(string(content))
		if found == name {
			return "/dev/" + filepath.Base(filepath.Dir(file)), nil
		}
		others = append(others, found)
	}
	return "", others
}

// hasVirtioConsole reports whether the VM has a virtio console device. Its ports appear later than
// the device.
func hasVirtioConsole(sys string) bool {
	const consoleID = "0x0003" // VIRTIO_ID_CONSOLE
	files, _ := filepath.Glob(sys + "/bus/virtio/devices/*/device")
	for _, file := range files {
		content, _ := os.ReadFile(file)
		if strings.TrimSpace(string(content)) == consoleID {
			return true
		}
	}
	return false
}

// ReadWait implements Port.
func (d *virtioPort) ReadWait(p []byte) (n int, err error) {
	waitErr := d.raw.Read(func(fd uintptr) bool {
		for {
			n, err = syscall.Read(int(fd), p)
			switch {
			case n > 0:
				return true
			case err == syscall.EINTR:
				continue
			case err == nil || err == syscall.EAGAIN:
				return false
			default:
				n, err = 0, &os.PathError{Op: "read", Path: d.Name(), Err: err}
				return true
			}
		}
	})
	if waitErr != nil {
		return 0, waitErr
	}
	return n, err
}

// Read implements Port. A port returns at most a page per call. Read therefore repeats the call
// until p is full or no data is left: a detour through the runtime's poller costs as much as a
// call.
func (d *virtioPort) Read(p []byte) (n int, err error) {
	waitErr := d.raw.Read(func(fd uintptr) bool {
		for n < len(p) {
			m, _, errno := syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(&p[n])), uintptr(len(p)-n)) // does not block
			switch {
			case errno == syscall.EINTR:
			case errno == syscall.EAGAIN:
				return n > 0
			case errno != 0 && errno != syscall.ENODEV:
				err = &os.PathError{Op: "read", Path: d.Name(), Err: errno}
				return true
			case errno != 0 || m == 0:
				err = io.EOF
				return true
			default:
				n += int(m)
			}
		}
		return true
	})
	if n > 0 {
		return n, nil // the next call returns the end again
	}
	if err == nil {
		err = waitErr
	}
	return 0, err
}
