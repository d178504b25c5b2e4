package process

import (
	"errors"
	"io"
	"os"
	"syscall"
	"time"
	"unsafe"
)

const (
	// pipeSize lets a command write on while its output is on the way to the host.
	pipeSize   = 256 << 10
	fSetPipeSz = 1031
	fionread   = 0x541b
)

// Output is the reading end of a command's stdout or stderr. One goroutine at a time may read it.
type Output struct {
	file  *os.File
	raw   syscall.RawConn
	left  int  // once draining: what was in the pipe when the command had ended
	drain bool // no more waiting for data
	eof   bool
}

// newOutput returns the pipe's reading end and the descriptor of its writing end. The latter is in blocking mode, as programs expect.
func newOutput(name string) (*Output, int, error) {
	r, w, err := pipe()
	if err != nil {
		return nil, -1, err
	}
	syscall.SetNonblock(r, true)
	syscall.Syscall(syscall.SYS_FCNTL, uintptr(r), fSetPipeSz, pipeSize) // best effort
	o := &Output{file: os.NewFile(uintptr(r), name)}
	if o.raw, err = o.file.SyscallConn(); err != nil {
		o.file.Close()
		syscall.Close(w)
		return nil, -1, err
	}
	return o, w, nil
}

func pipe() (r, w int, err error) {
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC); err != nil {
		return -1, -1, os.NewSyscallError("pipe2", err)
	}
	return fds[0], fds[1], nil
}

// Read waits for output and takes as much as is there and fits. It returns io.EOF when nobody can write any more, or
// when the command has ended and all that was in the pipe by then has been read.
func (o *Output) Read(p []byte) (n int, err error) {
	if !o.drain {
		n, err = o.wait(p)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		o.drain, o.left = true, o.inPipe()
	}
	return o.take(p)
}

// wait reads until the pipe is empty or p full, so that many small writes become one frame, and waits only for the first byte.
func (o *Output) wait(p []byte) (n int, err error) {
	waitErr := o.raw.Read(func(fd uintptr) bool {
		for n < len(p) {
			m, readErr := syscall.Read(int(fd), p[n:])
			switch {
			case m > 0:
				n += m
			case readErr == syscall.EINTR:
			case readErr == syscall.EAGAIN:
				return n > 0
			default:
				o.eof = n == 0
				err = readErr
				return true
			}
		}
		return true
	})
	if n > 0 {
		return n, nil
	}
	if waitErr != nil {
		return 0, waitErr
	}
	if err == nil {
		err = io.EOF
	}
	return 0, err
}

// take reads from what was in the pipe when the command had ended.
func (o *Output) take(p []byte) (n int, err error) {
	if o.left == 0 || o.eof {
		return 0, io.EOF
	}
	o.raw.Control(func(fd uintptr) {
		for {
			if n, err = syscall.Read(int(fd), p[:min(len(p), o.left)]); err != syscall.EINTR {
				return
			}
		}
	})
	if n <= 0 {
		o.eof = n == 0 && err == nil
		return 0, io.EOF
	}
	o.left -= n
	return n, nil
}

func (o *Output) inPipe() (n int) {
	var count int32
	o.raw.Control(func(fd uintptr) {
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, fionread, uintptr(unsafe.Pointer(&count)))
		if errno == 0 {
			n = int(count)
		}
	})
	return n
}

// end makes Read stop waiting: the command's first process has ended.
func (o *Output) end() { o.file.SetReadDeadline(time.Unix(1, 0)) }

// abandon drops what descendants in the background write from now on, until the last of them has closed its end: they must
// neither block nor get SIGPIPE.
func (o *Output) abandon() {
	if o.eof {
		o.file.Close()
		return
	}
	go func() {
		o.file.SetReadDeadline(time.Time{})
		io.Copy(io.Discard, o.file)
		o.file.Close()
	}()
}
