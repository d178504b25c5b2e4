// Package boot takes the guest from the kernel's first process to a running root filesystem, and to its end:
// protocol/agent.md, section 4.
package boot

import (
	"fmt"
	"os"
	"syscall"
	"time"
)

// deviceTimeout bounds the wait for what the kernel finds after its driver's start.
const deviceTimeout = 10 * time.Second

// Guest is a guest that has booted.
type Guest struct {
	Console *Console

	// overlay is the root of the writable filesystem below the overlayfs. After the switch of the root no path leads to it, but the end
	// has to leave it clean.
	overlay *os.File
}

// StepError says which step of the boot failed.
type StepError struct {
	Step string
	Err  error
}

func (e *StepError) Error() string { return e.Step + ": " + e.Err.Error() }

func (e *StepError) Unwrap() error { return e.Err }

// Run boots. The console is usable even when it fails.
func Run() (*Guest, error) {
	guest := &Guest{}
	syscall.Umask(0o022)
	steps := []struct {
		name string
		do   func() error
	}{
		{"mount /proc, /sys, /dev", mountKernel},
		{"open /dev/console", func() (err error) { guest.Console, err = OpenConsole(); return err }},
		{"load modules", func() error { return loadModules(modulesDir, modulesList) }},
		{"assemble the root", guest.assembleRoot},
		{"enter the root", enterRoot},
		{"mount in the root", mountInRoot},
		{"bring up lo", loopbackUp},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			return guest, &StepError{step.name, err}
		}
	}
	// A session of its own, with no controlling terminal, for all that is started from here. It fails for a leader, which is as good.
	syscall.Setsid()
	return guest, nil
}

// assembleRoot mounts base and overlay and joins them at newRoot.
func (g *Guest) assembleRoot() error {
	disks, err := findDisks("/sys/block", deviceTimeout, baseSerial, overlaySerial)
	if err != nil {
		return err
	}
	base, err := filesystemOf(disks[baseSerial])
	if err != nil {
		return err
	}
	if err := mountBase(disks[baseSerial], base); err != nil {
		return err
	}
	if err := mount(disks[overlaySerial], overlayDir, "ext4", syscall.MS_NOATIME, ""); err != nil {
		return err
	}
	if g.overlay, err = os.Open(overlayDir); err != nil {
		return err
	}
	for _, dir := range []string{upperDir, workDir} {
		if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
			return err
		}
	}
	// With redirect_dir a directory of the image can be renamed: overlayfs then notes in the upper one where its files are.
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,redirect_dir=on", baseDir, upperDir, workDir)
	return mount("overlay", newRoot, "overlay", 0, options)
}

// mountBase mounts the base read-only. An ext4 image that was not cleanly unmounted needs its journal replayed, which a
// read-only device forbids: then it is read as it is.
func mountBase(device, kind string) error {
	err := mount(device, baseDir, kind, syscall.MS_RDONLY, "")
	if err != nil && kind == "ext4" {
		err = mount(device, baseDir, kind, syscall.MS_RDONLY, "noload")
	}
	return err
}
