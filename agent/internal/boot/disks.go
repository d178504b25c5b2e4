package boot

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// The disks that form the root.
const (
	baseDisk    = "base"
	overlayDisk = "overlay"
)

// serialPrefix and a disk's name are its serial number.
const serialPrefix = "squib-"

// findDisks returns the device of each disk by its name. The parameter squib.disk.NAME names the
// device; without it the disk is found by its serial number. A disk may appear some time after its
// driver was loaded.
func findDisks(sysBlock string, timeout time.Duration, parameters map[string]string, names ...string) (map[string]string, error) {
	for wait, waited := time.Millisecond, time.Duration(0); ; wait = min(2*wait, 50*time.Millisecond) {
		present := disksByName(sysBlock, parameters)
		var missing []string
		for _, name := range names {
			if present[name] == "" {
				missing = append(missing, name)
			}
		}
		if len(missing) == 0 {
			return present, nil
		}
		if waited >= timeout {
			devices, _ := filepath.Glob(sysBlock + "/*")
			return nil, fmt.Errorf("disks without a device: %s; found %v among %v", strings.Join(missing, ", "), present, devices)
		}
		time.Sleep(wait)
		waited += wait
	}
}

func disksByName(sysBlock string, parameters map[string]string) map[string]string {
	found := map[string]string{}
	files, _ := filepath.Glob(sysBlock + "/*/serial")
	for _, file := range files {
		serial, _ := os.ReadFile(file)
		if name, ok := strings.CutPrefix(strings.TrimSpace(string(serial)), serialPrefix); ok {
			found[name] = "/dev/" + filepath.Base(filepath.Dir(file))
		}
	}
	for parameter, device := range parameters {
		name, ok := strings.CutPrefix(parameter, diskParameter)
		if !ok {
			continue
		}
		if _, err := os.Stat(filepath.Join(sysBlock, device)); err == nil {
			found[name] = "/dev/" + device
		}
	}
	return found
}

// filesystemOf returns the type of a filesystem, from its superblock.
func filesystemOf(device string) (string, error) {
	f, err := os.Open(device)
	if err != nil {
		return "", err
	}
	defer f.Close()
	block := make([]byte, 2048)
	if _, err := io.ReadFull(f, block); err != nil {
		return "", fmt.Errorf("read the superblock of %s: %w", device, err)
	}
	const ext4Magic = 1024 + 56
	switch {
	case bytes.HasPrefix(block, []byte("hsqs")):
		return "squashfs", nil
	case binary.LittleEndian.Uint16(block[ext4Magic:]) == 0xef53:
		return "ext4", nil
	}
	return "", fmt.Errorf("unknown filesystem on %s: use squashfs or ext4", device)
}
