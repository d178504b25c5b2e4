package process

import (
	"io"
	"os"
	"syscall"
	"time"
	"unsafe"
)

const fionread = 0x541b

// source is the agent's end of a pipe or terminal that a command writes to.
type source struct {
	file     *os.File
	raw      syscall.RawConn
	terminal bool
}

// newSource returns a source for a descriptor in non-blocking mode.
func newSource(fd int, name string, terminal bool) (*source, error) {
	file := os.NewFile(uintptr(fd), name)
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &source{file: file, raw: raw, terminal: terminal}, nil
}

// newOutput returns the source of a new pipe, and the descriptor of its write end. The write end is
// in blocking mode, as programs expect.
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

// end makes pump finish, because the command's first process has ended.
func (o *source) end() { o.file.SetReadDeadline(past) }

// pump reads into the log until all writers have closed the pipe, or until the command has ended
// and everything written before its end was read. It discards what background descendants write
// later, so that they neither block nor receive SIGPIPE.
func (o *source) pump(log *Log, s Stream) {
	closed, small := false, !o.terminal
	for waiting, taken := true, 0; waiting && !closed; {
		waiting = nil == o.raw.Read(func(fd uintptr) bool {
			n, err := log.take(int(fd), s, all)
			if taken += n; small && taken >= largePipe {
				small = false
				log.enlarge(fd)
			}
			if n == 0 && o.wouldBlock(err) {
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

// wouldBlock reports whether a failed read means that there is no output yet. Reading from a terminal that
// no process has open fails with EIO, but processes can open it again while the session leader
// lives.
func (o *source) wouldBlock(err error) bool {
	return err == syscall.EAGAIN || o.terminal && err == syscall.EIO
}

// drain reads what was written before the command ended. It reports whether all writers have closed
// the pipe.
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

// pending returns how many bytes to read after the command's end. For a pipe this is what it holds.
// A terminal cannot tell: it holds at most terminalHolds, and fails with EAGAIN or EIO when it is
// empty.
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
