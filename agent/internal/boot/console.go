package boot

import (
	"os"
	"strings"
	"syscall"
)

// Console writes lines to the guest's console, where the host reads them. A nil Console writes to
// stderr, which the kernel has opened.
type Console struct{ file *os.File }

// OpenConsole opens the console and makes it stdout and stderr, so that a panic of the agent shows
// there. Stdin becomes /dev/null.
func OpenConsole() (*Console, error) {
	f, err := os.OpenFile("/dev/console", os.O_WRONLY|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	for fd := 1; fd <= 2; fd++ {
		if err := syscall.Dup3(int(f.Fd()), fd, 0); err != nil {
			return nil, os.NewSyscallError("dup3", err)
		}
	}
	if null, err := os.Open("/dev/null"); err == nil {
		syscall.Dup3(int(null.Fd()), 0, 0)
		null.Close()
	}
	return &Console{f}, nil
}

// Write implements io.Writer for package log. It prints each line of p with the agent's prefix.
func (c *Console) Write(p []byte) (int, error) {
	f := os.Stderr
	if c != nil {
		f = c.file
	}
	var b strings.Builder
	for line := range strings.Lines(string(p)) {
		b.WriteString("squib-agent: " + strings.TrimRight(line, "\n") + "\n")
	}
	if _, err := f.WriteString(b.String()); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Print prints one line.
func (c *Console) Print(line string) { c.Write([]byte(line)) }

// drain waits until the console has transmitted what was printed.
func (c *Console) drain() {
	const tcsbrk = 0x5409 // tcdrain(3) is TCSBRK with 1
	fd := os.Stderr.Fd()
	if c != nil {
		fd = c.file.Fd()
	}
	syscall.Syscall(syscall.SYS_IOCTL, fd, tcsbrk, 1)
}
