package boot

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"
)

// loadModules loads the modules in the list, in order, and removes their files, since an initramfs
// occupies memory. It skips a module for hardware that the machine lacks: the list of a nested guest
// has the KVM modules of both CPU vendors. A kernel with everything built in has no list.
func loadModules(dir, list string, load func(path string) error) error {
	names, err := os.ReadFile(list)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(names)) {
		path := filepath.Join(dir, name)
		switch err := load(path); err {
		case nil, syscall.EEXIST, syscall.ENODEV, syscall.EOPNOTSUPP:
			os.Remove(path)
		default:
			return &os.PathError{Op: "finit_module", Path: path, Err: err}
		}
	}
	return nil
}

func loadModule(path string) error {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	var noParameters [1]byte
	if _, _, errno := syscall.Syscall(sysFinitModule, uintptr(fd), uintptr(unsafe.Pointer(&noParameters)), 0); errno != 0 {
		return errno
	}
	return nil
}
