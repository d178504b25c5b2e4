// Package boot takes the guest from the kernel's first process to a running root filesystem, and
// powers it off. See protocol/agent.md, section 4.
package boot

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"squib/agent/internal/files"
)

// deviceTimeout bounds the wait for a device to appear after its driver has started.
const deviceTimeout = 10 * time.Second

// Guest is a booted guest.
type Guest struct {
	Console *Console
	// Records are the records of temporary files, on the disk.
	Records *files.Records

	parameters map[string]string

	// overlay is the root directory of the writable filesystem below the overlayfs. No path leads
	// to it after the switch of the root, but PowerOff must leave it clean.
	overlay *os.File
}

// StepError reports which step of the boot failed.
type StepError struct {
	Step string
	Err  error
}

func (e *StepError) Error() string { return e.Step + ": " + e.Err.Error() }

func (e *StepError) Unwrap() error { return e.Err }

// Run boots the guest. The console is usable even if Run fails.
func Run() (*Guest, error) {
	guest := &Guest{}
	syscall.Umask(0o022)
	steps := []struct {
		name string
		do   func() error
	}{
		{"mount /proc, /sys, /dev", mountKernel},
		{"read the kernel's command line", func() (err error) { guest.parameters, err = readParameters("/proc/cmdline"); return err }},
		{"open /dev/console", func() (err error) { guest.Console, err = OpenConsole(); return err }},
		{"load modules", func() error { return loadModules(modulesDir, modulesList, loadModule) }},
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
	// Start a session without a controlling terminal for everything that the agent starts. Setsid
	// fails if the agent leads one already, which serves as well.
	syscall.Setsid()
	return guest, nil
}

// assembleRoot mounts the base and the overlay, and joins them at newRoot.
func (g *Guest) assembleRoot() error {
	disks, err := findDisks("/sys/block", deviceTimeout, g.parameters, baseDisk, overlayDisk)
	if err != nil {
		return err
	}
	base, err := filesystemOf(disks[baseDisk])
	if err != nil {
		return err
	}
	if err := mountBase(disks[baseDisk], base); err != nil {
		return err
	}
	if err := mount(disks[overlayDisk], overlayDir, "ext4", syscall.MS_NOATIME, ""); err != nil {
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
	g.sweepUploads()
	// redirect_dir allows renaming a directory of the image: overlayfs then records its old path in
	// the upper directory.
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,redirect_dir=on", baseDir, upperDir, workDir)
	return mount("overlay", newRoot, "overlay", 0, options)
}

// sweepUploads removes what interrupted uploads left. A full or damaged disk does not stop the boot.
func (g *Guest) sweepUploads() {
	var err error
	if g.Records, err = files.OpenRecords(recordsDir); err == nil {
		err = g.Records.Sweep(upperDir)
	}
	if err != nil {
		g.Console.Print("temporary files of interrupted uploads may remain: " + err.Error())
	}
}

// mountBase mounts the base read-only. An ext4 image that was not unmounted cleanly needs a journal
// replay, which a read-only device forbids; mountBase then mounts it without its journal.
func mountBase(device, kind string) error {
	err := mount(device, baseDir, kind, syscall.MS_RDONLY, "")
	if err != nil && kind == "ext4" {
		err = mount(device, baseDir, kind, syscall.MS_RDONLY, "noload")
	}
	return err
}
