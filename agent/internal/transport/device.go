package transport

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// PortName is the name that the host gives the virtio port.
const PortName = "squib.agent"

// device is a virtio port.
//
// A read returns 0 while the host's end is closed. Waiting for the host then costs nothing: the runtime's poller is edge-triggered,
// so that the standing EPOLLHUP of such a port wakes it once, and data that comes later wakes it again.
type device struct {
	*os.File
	raw syscall.RawConn
}

// Open finds the virtio port called name and opens it, once for the life of the agent (a port has room for one
// opener). The kernel learns the names from the host some time after the driver's start: Open waits for that up to timeout.
func Open(name string, timeout time.Duration) (Port, error) {
	path, err := find("/sys/class/virtio-ports", name, timeout)
	if err != nil {
		return nil, err
	}
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_NONBLOCK|syscall.O_CLOEXEC|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	file := os.NewFile(uintptr(fd), path)
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &device{file, raw}, nil
}

func find(class, name string, timeout time.Duration) (string, error) {
	for wait, waited := time.Millisecond, time.Duration(0); ; wait = min(2*wait, 20*time.Millisecond) {
		names, _ := filepath.Glob(class + "/*/name")
		var seen []string
		for _, file := range names {
			content, _ := os.ReadFile(file)
			is := strings.TrimSpace(string(content))
			if is == name {
				return "/dev/" + filepath.Base(filepath.Dir(file)), nil
			}
			seen = append(seen, fmt.Sprintf("%q", is))
		}
		if waited >= timeout {
			return "", fmt.Errorf("no virtio port is called %q; there are: [%s]", name, strings.Join(seen, " "))
		}
		time.Sleep(wait)
		waited += wait
	}
}

// ReadWait implements Port.
func (d *device) ReadWait(p []byte) (n int, err error) {
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

// Read implements Port. It takes as much as is there and fits, though the port gives at most a page a call: so the runtime, which
// costs as much as the call, is asked once for all of them.
func (d *device) Read(p []byte) (n int, err error) {
	waitErr := d.raw.Read(func(fd uintptr) bool {
		for n < len(p) {
			m, _, errno := syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(&p[n])), uintptr(len(p)-n)) // never waits
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
		return n, nil // the end is there for the next call, too
	}
	if err == nil {
		err = waitErr
	}
	return 0, err
}
