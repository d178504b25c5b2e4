package boot

import (
	"os"
	"path/filepath"
	"strings"
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
	if _, err := findDisks(sys, 0, baseSerial, overlaySerial); err == nil || !strings.Contains(err.Error(), "squib-base") || !strings.Contains(err.Error(), "/dev/vdb") {
		t.Errorf("a missing disk: %v", err)
	}
	found := make(chan map[string]string)
	go func() {
		disks, err := findDisks(sys, 10*time.Second, baseSerial, overlaySerial)
		if err != nil {
			t.Error(err)
		}
		found <- disks
	}()
	write(t, sys+"/vdc/serial", []byte("squib-base"))
	if disks := <-found; disks[baseSerial] != "/dev/vdc" || disks[overlaySerial] != "/dev/vda" {
		t.Errorf("got %v", disks)
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
	if err := loadModules(dir, dir+"/modules.list"); err != nil {
		t.Error(err)
	}
	write(t, dir+"/modules.list", []byte("absent.ko\n"))
	if err := loadModules(dir, dir+"/modules.list"); err == nil || !strings.Contains(err.Error(), "absent.ko") {
		t.Errorf("got %v", err)
	}
}

func TestStepErrorNamesTheStep(t *testing.T) {
	err := &StepError{"load modules", os.ErrNotExist}
	if err.Error() != "load modules: file does not exist" || err.Unwrap() != os.ErrNotExist {
		t.Error(err)
	}
}
