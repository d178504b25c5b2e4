// Package guestfile reads files that the guest controls. Nothing that the guest puts in their place
// may block the agent or fill its memory.
package guestfile

import (
	"fmt"
	"io"
	"os"
	"syscall"
)

// MaxBytes bounds what is read of a file.
const MaxBytes = 1 << 20

// Read returns up to the first MaxBytes of a regular file. Any other file, such as a pipe without a
// writer, is an error.
func Read(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	return io.ReadAll(io.LimitReader(f, MaxBytes))
}
