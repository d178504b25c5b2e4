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

// Serial numbers of the disks that form the root.
const (
	baseSerial    = "squib-base"
	overlaySerial = "squib-overlay"
)

// findDisks returns the device for each serial number. A disk may appear some time after its driver
// was loaded.
func findDisks(sysBlock string, timeout time.Duration, serials ...string) (map[string]string, error) {
	for wait, waited := time.Millisecond, time.Duration(0); ; wait = min(2*wait, 50*time.Millisecond) {
		found := map[string]string{}
		files, _ := filepath.Glob(sysBlock + "/*/serial")
		for _, file := range files {
			serial, _ := os.ReadFile(file)
			found[strings.TrimSpace(string(serial))] = "/dev/" + filepath.Base(filepath.Dir(file))
		}
		var missing []string
		for _, serial := range serials {
			if found[serial] == "" {
				missing = append(missing, serial)
			}
		}
		if len(missing) == 0 {
			return found, nil
		}
		if waited >= timeout {
			return nil, fmt.Errorf("no disk has the serial number %s; disks by serial number: %v", strings.Join(missing, ", "), found)
		}
		time.Sleep(wait)
		waited += wait
	}
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
