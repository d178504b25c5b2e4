package boot

import (
	"os"
	"strings"
)

// Parameters of the kernel's command line with which a driver describes its VM.
const (
	// diskParameter and a disk's name, as in squib.disk.base=vda, name the device of a disk. VMMs
	// that can give disks a serial number need no such parameter.
	diskParameter = "squib.disk."
	// powerOffParameter says how a guest powers off. The value "restart" is for VMMs that end when
	// the guest restarts, and cannot be powered off.
	powerOffParameter = "squib.poweroff"
)

// readParameters returns the parameters of the kernel's command line whose names begin with
// "squib.". If a parameter occurs twice, the last one counts.
func readParameters(path string) (map[string]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for _, word := range strings.Fields(string(text)) {
		if name, value, _ := strings.Cut(word, "="); strings.HasPrefix(name, "squib.") {
			found[name] = value
		}
	}
	return found, nil
}
