// Package identity gives a guest its host name, clock, entropy and machine ID. They distinguish
// clones of one template, so a value that cannot be set is an error.
package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"squib/agent/internal/guestfile"
)

// Guest is the guest whose identity is set.
type Guest struct {
	// Root is the directory above etc; empty means /.
	Root string
}

// hostsMark ends the agent's own line of /etc/hosts.
const hostsMark = "# squib"

// CheckHostname rejects invalid host names, especially any that would add lines to a file.
func CheckHostname(name string) error {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	other := strings.TrimLeft(name, letters+"-.")
	if name == "" || len(name) > 64 || other != "" || !strings.Contains(letters, name[:1]) {
		return fmt.Errorf("invalid hostname %q: use 1 to 64 letters, digits, \".\" or \"-\", starting with a letter or digit", name)
	}
	return nil
}

// SetHostname sets the name in the kernel, in /etc/hostname and in /etc/hosts.
func (g Guest) SetHostname(name string) error {
	if err := CheckHostname(name); err != nil {
		return err
	}
	if err := syscall.Sethostname([]byte(name)); err != nil {
		return os.NewSyscallError("sethostname", err)
	}
	return g.WriteHostname(name)
}

// WriteHostname writes the name to /etc/hostname and /etc/hosts.
func (g Guest) WriteHostname(name string) error {
	if err := g.update("etc/hostname", name+"\n", 0o644); err != nil {
		return err
	}
	old, err := guestfile.Read(g.path("etc/hosts"))
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	return g.update("etc/hosts", hosts(string(old), name), 0o644)
}

// hosts returns the contents of /etc/hosts with the agent's line replaced. It adds localhost if
// missing, since images leave that line to the container runtime.
func hosts(old, name string) string {
	var b strings.Builder
	localhost := false
	for line := range strings.Lines(old) {
		line = strings.TrimRight(line, "\r\n")
		if strings.HasSuffix(line, hostsMark) {
			continue
		}
		entry, _, _ := strings.Cut(line, "#")
		for i, field := range strings.Fields(entry) {
			localhost = localhost || i > 0 && field == "localhost"
		}
		b.WriteString(line + "\n")
	}
	if !localhost {
		b.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
	}
	// Debian uses this address for a host without a permanent one; 127.0.0.1 still resolves to
	// localhost first.
	b.WriteString("127.0.1.1 " + name + " " + hostsMark + "\n")
	return b.String()
}

// CheckMachineID rejects IDs that are not in the form of machine-id(5).
func CheckMachineID(id string) error {
	if len(id) != 32 || strings.TrimLeft(id, "0123456789abcdef") != "" {
		return fmt.Errorf("invalid machine_id %q: use 32 lower-case hex digits", id)
	}
	return nil
}

// SetMachineID writes /etc/machine-id.
func (g Guest) SetMachineID(id string) error {
	if err := CheckMachineID(id); err != nil {
		return err
	}
	return g.update("etc/machine-id", id+"\n", 0o444)
}

// bootIDForm is that of /proc/sys/kernel/random/boot_id: a UUID in lower case.
var bootIDForm = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// CheckBootID rejects IDs that are not in the form of the kernel's.
func CheckBootID(id string) error {
	if !bootIDForm.MatchString(id) {
		return fmt.Errorf("invalid boot_id %q: use a UUID in lower case", id)
	}
	return nil
}

// SetBootID mounts a file with this ID over the kernel's. The kernel draws its own once in each
// boot, so clones of a running guest would share it.
func (g Guest) SetBootID(id string) error {
	if err := CheckBootID(id); err != nil {
		return err
	}
	const name = "run/squib-boot-id"
	if err := g.write(name, id+"\n", 0o444); err != nil {
		return err
	}
	defer os.Remove(g.path(name)) // the mount keeps the file
	kernels := g.path("proc/sys/kernel/random/boot_id")
	syscall.Unmount(kernels, syscall.MNT_DETACH) // an earlier ID: its file is gone, so nothing can be mounted over it
	err := syscall.Mount(g.path(name), kernels, "", syscall.MS_BIND, "")
	if err == nil {
		err = syscall.Mount("", kernels, "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, "")
	}
	return os.NewSyscallError("mount "+kernels, err)
}

// VM says which VM a guest is.
type VM struct {
	ID        string `json:"vm_id"`
	Name      string `json:"name"`
	MachineID string `json:"machine_id"`
	BootID    string `json:"boot_id"`
}

var vmIDForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)

// CheckVMID rejects what cannot be the ID of a VM.
func CheckVMID(id string) error {
	if !vmIDForm.MatchString(id) {
		return fmt.Errorf("invalid vm_id %q: use 1 to 63 letters, digits, \"_\", \".\" or \"-\", starting with a letter or digit", id)
	}
	return nil
}

// Describe writes /run/squib/identity.json. A process can watch it: it is replaced whenever the guest
// becomes another VM, or the same one at a later time.
func (g Guest) Describe(vm VM) error {
	content, err := json.Marshal(vm)
	if err != nil {
		return err
	}
	return g.write("run/squib/identity.json", string(content)+"\n", 0o644)
}

// SetClock sets the real-time clock. Durations are not affected.
func (Guest) SetClock(now time.Time) error {
	tv := syscall.NsecToTimeval(now.UnixNano())
	return os.NewSyscallError("settimeofday", syscall.Settimeofday(&tv))
}

func (g Guest) path(name string) string { return filepath.Join("/", g.Root, name) }

// mostInPlace is the largest content that the disk takes as a whole or not at all: a block.
const mostInPlace = 4096

// update gives a file this content. An emulated guest that is new needs 0.1 s to replace one for the first time, and
// less than half of that to write to one that is there. No command runs meanwhile, so none reads a part of it.
func (g Guest) update(name, content string, mode os.FileMode) error {
	if g.overwrite(name, content) == nil {
		return nil
	}
	return g.write(name, content, mode)
}

// overwrite writes to a small regular file that has no other name. It fails for any other, and changes nothing.
func (g Guest) overwrite(name, content string) error {
	f, err := os.OpenFile(g.path(name), os.O_WRONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var info syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &info); err != nil {
		return err
	}
	if info.Mode&syscall.S_IFMT != syscall.S_IFREG || info.Nlink != 1 || max(info.Size, int64(len(content))) > mostInPlace {
		return errors.New("it has to be replaced")
	}
	if _, err := f.WriteAt([]byte(content), 0); err != nil || info.Size <= int64(len(content)) {
		return err
	}
	return f.Truncate(int64(len(content)))
}

// write replaces a file by rename. Readers never see an incomplete file, and a symbolic link in its
// place is not followed.
func (g Guest) write(name, content string, mode os.FileMode) error {
	path := g.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	temporary := path + ".squib"
	os.Remove(temporary)
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		os.Remove(temporary)
	}
	return err
}
