package process

import (
	"context"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
)

// input is what a command's stdin is fed through: the writing end of a pipe, or a terminal. Nil stands for /dev/null.
type input struct {
	file     *os.File
	terminal bool          // file is the source's too, which closes it
	turn     chan struct{} // holds one token while nobody writes
	once     sync.Once
	large    bool // or could not be made so; belongs to whoever writes
}

func newInput(file *os.File, terminal bool) *input {
	in := &input{file: file, terminal: terminal, turn: make(chan struct{}, 1)}
	in.turn <- struct{}{}
	return in
}

// newStdin returns the input of a new pipe and the descriptor of its reading end, which is in blocking mode.
func newStdin() (*input, int, error) {
	r, w, err := pipe()
	if err != nil {
		return nil, -1, err
	}
	syscall.SetNonblock(w, true)
	return newInput(os.NewFile(uintptr(w), "stdin"), false), r, nil
}

// close is idempotent; a write in progress fails.
func (in *input) close() {
	switch {
	case in == nil:
	case in.terminal:
		in.file.SetWriteDeadline(past)
	default:
		in.once.Do(func() { in.file.Close() })
	}
}

// past is a deadline that ends reads and writes in progress.
var past = time.Unix(1, 0)

var errStdinClosed = fail(StdinClosed, "the process does not read its standard input")

// inputBuffers holds *[]byte. A request may be a single key.
var inputBuffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// WriteStdin copies body to the command's stdin as it comes, and closes stdin after that if asked to (a terminal is sent its
// end-of-file character instead). Requests take turns. It returns how much was written; the error is StdinClosed when the
// command does not read any more, or the body's or ctx's.
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

	// A write waits for the command to read: the end of the request must reach it there, and that of the command, which
	// sets a terminal's deadline after done.
	if in.file.SetWriteDeadline(time.Time{}) != nil || isClosed(p.done) {
		return 0, errStdinClosed
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { in.file.SetWriteDeadline(past); close(stopped) })
	defer func() {
		if !stop() {
			<-stopped // so that it cannot hit the next request
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
