// Package guestfile reads files of the guest's root, which belong to the guest: whatever it has put in their place must
// neither hold the agent up nor fill its memory.
package guestfile

import (
	"fmt"
	"io"
	"os"
	"syscall"
)

// MaxBytes is how much of a file is read.
const MaxBytes = 1 << 20

// Read returns the first MaxBytes of a regular file. Anything else, such as a pipe that nobody writes to, is an error.
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
