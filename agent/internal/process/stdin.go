package process

import (
	"context"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
)

// input writes to a command's stdin: to a pipe or to a terminal. A nil input stands for /dev/null.
type input struct {
	file     *os.File
	terminal bool          // the file belongs to the source, which closes it
	turn     chan struct{} // holds a token while no request writes
	once     sync.Once
	large    bool // the pipe was enlarged, or cannot be; guarded by turn
}

func newInput(file *os.File, terminal bool) *input {
	in := &input{file: file, terminal: terminal, turn: make(chan struct{}, 1)}
	in.turn <- struct{}{}
	return in
}

// newStdin returns the input for a new pipe, and the descriptor of its read end, in blocking mode.
func newStdin() (*input, int, error) {
	r, w, err := pipe()
	if err != nil {
		return nil, -1, err
	}
	syscall.SetNonblock(w, true)
	return newInput(os.NewFile(uintptr(w), "stdin"), false), r, nil
}

// close closes the pipe, or ends a write to a terminal in progress. It is idempotent.
func (in *input) close() {
	switch {
	case in == nil:
	case in.terminal:
		in.file.SetWriteDeadline(past)
	default:
		in.once.Do(func() { in.file.Close() })
	}
}

// past is a deadline that interrupts reads and writes.
var past = time.Unix(1, 0)

var errStdinClosed = fail(StdinClosed, "the process does not read its standard input")

// inputBuffers holds *[]byte. Requests may be as small as one key.
var inputBuffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// WriteStdin copies body to the command's stdin as it arrives. With closeAfter, it then closes
// stdin, or sends a terminal its end-of-file character. Requests take turns. WriteStdin returns the
// number of bytes written, and an error of code StdinClosed if the command no longer reads, or the
// error of body or ctx.
func (p *Process) WriteStdin(ctx context.Context, body io.Reader, closeAfter bool) (written int64, err error) {
	in := p.stdin
	if in == nil {
		return 0, errStdinClosed
	}
	select {
	case <-in.turn:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	defer func() { in.turn <- struct{}{} }()

	// A write blocks until the command reads. It must be interrupted when the request ends, and
	// when the command ends: that sets a terminal's deadline after closing done.
	if in.file.SetWriteDeadline(time.Time{}) != nil || isClosed(p.done) {
		return 0, errStdinClosed
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { in.file.SetWriteDeadline(past); close(stopped) })
	defer func() {
		if !stop() {
			<-stopped // so that it cannot interrupt the next request
		}
	}()
	buffer := inputBuffers.Get().(*[]byte)
	defer inputBuffers.Put(buffer)
	for {
		n, readErr := body.Read(*buffer)
		if n == len(*buffer) && !in.large {
			in.large = true
			in.enlarge(p.Log)
		}
		if n > 0 {
			m, err := in.write(ctx, (*buffer)[:n])
			written += int64(m)
			if err != nil {
				return written, err
			}
		}
		if readErr == io.EOF {
			break
		}
		if readErr != nil {
			return written, readErr
		}
	}
	switch {
	case closeAfter && in.terminal:
		_, err = in.write(ctx, []byte{endOfFile})
	case closeAfter:
		in.close()
	}
	return written, err
}

func (in *input) enlarge(log *Log) {
	if raw, err := in.file.SyscallConn(); err == nil && !in.terminal {
		raw.Control(log.enlarge)
	}
}

func (in *input) write(ctx context.Context, data []byte) (n int, err error) {
	n, err = in.file.Write(data)
	switch {
	case err == nil:
		return n, nil
	case ctx.Err() != nil:
		return n, ctx.Err()
	}
	in.close()
	return n, errStdinClosed
}
