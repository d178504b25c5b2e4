package process

import (
	"io"
	"os"
	"syscall"
	"time"
	"unsafe"
)

const fionread = 0x541b

// source is the agent's end of what a command writes to: of a pipe or a terminal.
type source struct {
	file     *os.File
	raw      syscall.RawConn
	terminal bool
}

// newSource takes a descriptor in non-blocking mode.
func newSource(fd int, name string, terminal bool) (*source, error) {
	file := os.NewFile(uintptr(fd), name)
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &source{file: file, raw: raw, terminal: terminal}, nil
}

// newOutput returns the source of a new pipe and the descriptor of its writing end. The latter is in blocking mode, as programs expect.
func newOutput(name string) (*source, int, error) {
	r, w, err := pipe()
	if err != nil {
		return nil, -1, err
	}
	syscall.SetNonblock(r, true)
	o, err := newSource(r, name, false)
	if err != nil {
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

// end tells pump that the command's first process has ended.
func (o *source) end() { o.file.SetReadDeadline(past) }

// pump reads to the log until nobody can write any more, or the command has ended and what was written by then has been
// read. What descendants in the background write later is dropped: they must neither block nor get SIGPIPE.
func (o *source) pump(log *Log, s Stream) {
	closed, small := false, !o.terminal
	for waiting, taken := true, 0; waiting && !closed; {
		waiting = nil == o.raw.Read(func(fd uintptr) bool {
			n, err := log.take(int(fd), s, all)
			if taken += n; small && taken >= largePipe {
				small = false
				log.enlarge(fd)
			}
			if n == 0 && o.dry(err) {
				return false
			}
			closed = n == 0
			return true
		})
	}
	if !closed {
		closed = o.drain(log, s)
	}
	log.writerDone()
	if closed {
		o.file.Close()
	} else {
		go discard(o.file)
	}
}

// dry reports whether a failed read is no end. A terminal that no process holds open fails with EIO, and may be opened again
// as long as the leader of its session lives.
func (o *source) dry(err error) bool {
	return err == syscall.EAGAIN || o.terminal && err == syscall.EIO
}

// drain reads what was written before the command's end, and reports whether nobody can write any more.
func (o *source) drain(log *Log, s Stream) (closed bool) {
	left := o.pending()
	for n := 1; n > 0 && left > 0; left -= n {
		o.raw.Control(func(fd uintptr) {
			var err error
			n, err = log.take(int(fd), s, left)
			closed = n == 0 && err != syscall.EAGAIN
		})
	}
	return closed
}

// pending returns how much is to be read once the command has ended: what the pipe holds. A terminal cannot tell; it
// holds no more than terminalHolds, and says EAGAIN or EIO only when it has given all.
func (o *source) pending() (n int) {
	if o.terminal {
		return terminalHolds
	}
	var count int32
	o.raw.Control(func(fd uintptr) {
		if ioctl(fd, fionread, unsafe.Pointer(&count)) == nil {
			n = int(count)
		}
	})
	return n
}

func discard(file *os.File) {
	file.SetReadDeadline(time.Time{})
	io.Copy(io.Discard, file)
	file.Close()
}

func ioctl(fd, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
