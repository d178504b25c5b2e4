package boot

import (
	"errors"
	"os"
	"syscall"
)

// Paths in the initramfs.
const (
	modulesDir  = "/squib/modules"
	modulesList = "/squib/modules.list"
	baseDir     = "/squib/base"
	overlayDir  = "/squib/overlay"
	upperDir    = overlayDir + "/upper"
	workDir     = overlayDir + "/work"
	recordsDir  = overlayDir + "/uploads"
	newRoot     = "/squib/root"
)

// CgroupDir is the mount point of cgroup v2, if the kernel supports it.
const CgroupDir = "/sys/fs/cgroup"

const (
	noExec   = syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC
	noDevice = syscall.MS_NOSUID | syscall.MS_NODEV
)

// mount creates the directory target and mounts on it.
func mount(source, target, kind string, flags uintptr, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := syscall.Mount(source, target, kind, flags, data); err != nil {
		return &os.PathError{Op: "mount " + kind + " " + source + " on", Path: target, Err: err}
	}
	return nil
}

func mountKernel() error {
	return errors.Join(
		mount("proc", "/proc", "proc", noExec, ""),
		mount("sysfs", "/sys", "sysfs", noExec, ""),
		mount("devtmpfs", "/dev", "devtmpfs", syscall.MS_NOSUID, "mode=0755"),
	)
}

// enterRoot makes newRoot the root of this process and of everything that it starts. The initramfs,
// now almost empty, stays below it: the kernel cannot unmount it.
func enterRoot() error {
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if err := os.MkdirAll(newRoot+dir, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(dir, newRoot+dir, "", syscall.MS_MOVE, ""); err != nil {
			return &os.PathError{Op: "move mount", Path: dir, Err: err}
		}
	}
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := syscall.Mount(".", "/", "", syscall.MS_MOVE, ""); err != nil {
		return &os.PathError{Op: "move mount", Path: newRoot, Err: err}
	}
	if err := syscall.Chroot("."); err != nil {
		return os.NewSyscallError("chroot", err)
	}
	return os.Chdir("/")
}

// mountInRoot completes /dev and mounts what programs expect on a running system. /run is cleared
// at each boot. /tmp is not: it is on the disk, as large as the disk, and part of snapshots.
func mountInRoot() error {
	err := errors.Join(
		mount("devpts", "/dev/pts", "devpts", syscall.MS_NOSUID|syscall.MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"),
		mount("tmpfs", "/dev/shm", "tmpfs", noDevice, "mode=1777"),
		mount("tmpfs", "/run", "tmpfs", noDevice, "mode=755"),
		directory("/run/lock", 0o777|os.ModeSticky),
		directory("/tmp", 0o777|os.ModeSticky),
	)
	for name, target := range map[string]string{"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"} {
		os.Symlink("/proc/self/fd"+target, "/dev/"+name)
	}
	// Devices for guests that run VMs, with the modes that udev gives them. Other guests lack them.
	for _, device := range []string{"/dev/kvm", "/dev/net/tun", "/dev/vhost-vsock"} {
		os.Chmod(device, 0o666)
	}
	// Without cgroup v2 in the kernel, commands run without cgroups.
	mount("cgroup2", CgroupDir, "cgroup2", noExec, "nsdelegate")
	return err
}

// directory creates a directory with exactly this mode, unless it exists.
func directory(path string, mode os.FileMode) error {
	if err := os.Mkdir(path, mode.Perm()); err != nil {
		if os.IsExist(err) {
			return nil
		}
		return err
	}
	return os.Chmod(path, mode)
}
