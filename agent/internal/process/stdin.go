package process

import (
	"context"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
)

// input is the writing end of a command's stdin. Nil stands for /dev/null.
type input struct {
	file *os.File
	turn chan struct{} // holds one token while nobody writes
	once sync.Once
}

// newInput returns the pipe's writing end and the descriptor of its reading end, which is in blocking mode.
func newInput() (*input, int, error) {
	r, w, err := pipe()
	if err != nil {
		return nil, -1, err
	}
	syscall.SetNonblock(w, true)
	syscall.Syscall(syscall.SYS_FCNTL, uintptr(w), fSetPipeSz, pipeSize) // best effort
	in := &input{file: os.NewFile(uintptr(w), "stdin"), turn: make(chan struct{}, 1)}
	in.turn <- struct{}{}
	return in, r, nil
}

// close is idempotent; a write in progress fails.
func (in *input) close() {
	if in != nil {
		in.once.Do(func() { in.file.Close() })
	}
}

var errStdinClosed = fail(StdinClosed, "the process does not read its standard input")

// WriteStdin copies body to the command's stdin as it comes, and closes stdin after that if asked to. Requests take turns. It
// returns how much was written; the error is StdinClosed when the command does not read any more, or the body's or ctx's.
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

	// A write waits for the command to read: the end of the request must reach it there.
	if in.file.SetWriteDeadline(time.Time{}) != nil {
		return 0, errStdinClosed
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { in.file.SetWriteDeadline(time.Unix(1, 0)); close(stopped) })
	defer func() {
		if !stop() {
			<-stopped // so that it cannot hit the next request
		}
	}()

	buffer := make([]byte, 64<<10)
	for {
		n, readErr := body.Read(buffer)
		if n > 0 {
			m, err := in.file.Write(buffer[:n])
			written += int64(m)
			switch {
			case err != nil && ctx.Err() != nil:
				return written, ctx.Err()
			case err != nil:
				in.close()
				return written, errStdinClosed
			}
		}
		if readErr == io.EOF {
			break
		}
		if readErr != nil {
			return written, readErr
		}
	}
	if closeAfter {
		in.close()
	}
	return written, nil
}
