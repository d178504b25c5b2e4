package boot

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func write(t *testing.T, path string, content []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDisksAreFoundBySerial(t *testing.T) {
	sys := t.TempDir()
	write(t, sys+"/vda/serial", []byte("squib-overlay\n"))
	write(t, sys+"/vdb/serial", []byte("other"))
	write(t, sys+"/loop0/size", []byte("0"))
	if _, err := findDisks(sys, 0, nil, baseDisk, overlayDisk); err == nil || !strings.Contains(err.Error(), "base") || !strings.Contains(err.Error(), "/vdb") {
		t.Errorf("a missing disk: %v", err)
	}
	found := make(chan map[string]string)
	go func() {
		disks, err := findDisks(sys, 10*time.Second, nil, baseDisk, overlayDisk)
		if err != nil {
			t.Error(err)
		}
		found <- disks
	}()
	write(t, sys+"/vdc/serial", []byte("squib-base"))
	if disks := <-found; disks[baseDisk] != "/dev/vdc" || disks[overlayDisk] != "/dev/vda" {
		t.Errorf("got %v", disks)
	}
}

// A VMM that cannot give disks a serial number names their devices on the kernel's command line.
func TestDisksAreFoundByTheKernelsCommandLine(t *testing.T) {
	dir := t.TempDir()
	cmdline := write(t, dir+"/cmdline", []byte("quiet squib.disk.base=vdx squib.disk.overlay=vdb root=/dev/vda squib.disk.base=vda\n"))
	parameters, err := readParameters(cmdline)
	if err != nil {
		t.Fatal(err)
	}
	sys := dir + "/block"
	write(t, sys+"/vda/size", []byte("0"))
	if _, err := findDisks(sys, 0, parameters, baseDisk, overlayDisk); err == nil || !strings.Contains(err.Error(), "overlay") {
		t.Errorf("a missing disk: %v", err)
	}
	write(t, sys+"/vdb/size", []byte("0"))
	disks, err := findDisks(sys, 0, parameters, baseDisk, overlayDisk)
	if err != nil || disks[baseDisk] != "/dev/vda" || disks[overlayDisk] != "/dev/vdb" {
		t.Errorf("got %v, %v", disks, err)
	}
}

func TestFilesystemsAreToldByTheirSuperblock(t *testing.T) {
	dir := t.TempDir()
	block := func(at int, magic string) []byte {
		b := make([]byte, 4096)
		copy(b[at:], magic)
		return b
	}
	for name, c := range map[string]struct {
		content []byte
		want    string
	}{
		"squashfs": {block(0, "hsqs"), "squashfs"},
		"ext4":     {block(1080, "\x53\xef"), "ext4"},
		"zeros":    {block(0, ""), ""},
		"short":    {[]byte("hsqs"), ""},
	} {
		got, err := filesystemOf(write(t, dir+"/"+name, c.content))
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
}

func TestNoModulesListMeansNoModules(t *testing.T) {
	dir := t.TempDir()
	if err := loadModules(dir, dir+"/modules.list", loadModule); err != nil {
		t.Error(err)
	}
	write(t, dir+"/modules.list", []byte("absent.ko\n"))
	if err := loadModules(dir, dir+"/modules.list", loadModule); err == nil || !strings.Contains(err.Error(), "absent.ko") {
		t.Errorf("got %v", err)
	}
}

func TestModulesForMissingHardwareAreSkipped(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/modules.list", []byte("kvm.ko\nkvm_amd.ko\nkvm_intel.ko\ntun.ko\nbad.ko\nlast.ko\n"))
	results := map[string]error{
		"kvm.ko": syscall.EEXIST, "kvm_amd.ko": syscall.ENODEV, "kvm_intel.ko": syscall.EOPNOTSUPP, "bad.ko": syscall.ENOEXEC,
	}
	var tried []string
	err := loadModules(dir, dir+"/modules.list", func(path string) error {
		tried = append(tried, filepath.Base(path))
		return results[filepath.Base(path)]
	})
	if !errors.Is(err, syscall.ENOEXEC) || !strings.Contains(err.Error(), "bad.ko") {
		t.Error(err)
	}
	if got := strings.Join(tried, " "); got != "kvm.ko kvm_amd.ko kvm_intel.ko tun.ko bad.ko" {
		t.Error(got)
	}
}

func TestStepErrorNamesTheStep(t *testing.T) {
	err := &StepError{"load modules", os.ErrNotExist}
	if err.Error() != "load modules: file does not exist" || err.Unwrap() != os.ErrNotExist {
		t.Error(err)
	}
}
