package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// Registers of a legacy virtio device, and bits of its status (virtio 1.2, 4.1.4.8 and 2.1).
const (
	regGuestFeatures = 4
	regQueueAddress  = 8
	regQueueSize     = 12
	regQueueSelect   = 14
	regQueueNotify   = 16
	regStatus        = 18

	statusAcknowledge = 1
	statusDriver      = 2
	statusDriverOK    = 4
)

const (
	featureMultiport = 1 << 1
	controlQueue     = 3 // from the guest to the host
	eventPortReady   = 3
	noSuchPort       = 4711
	pageSize         = 4096
)

// stderr makes QEMU print errors. It drives the virtio-serial device itself and sends control
// messages for a port that does not exist; QEMU complains about each of them.
func stderr() error {
	device, err := takeDevice()
	if err != nil {
		return err
	}
	pages, address, err := contiguousPages()
	if err != nil {
		return err
	}
	device.write8(regStatus, 0)
	device.write8(regStatus, statusAcknowledge|statusDriver)
	device.write32(regGuestFeatures, featureMultiport)
	device.write16(regQueueSelect, controlQueue)
	size := int(device.read16(regQueueSize))
	device.write32(regQueueAddress, uint32(address/pageSize))
	device.write8(regStatus, statusAcknowledge|statusDriver|statusDriverOK)
	if device.err != nil {
		return device.err
	}

	message := pageSize - 8
	binary.LittleEndian.PutUint32(pages[message:], noSuchPort)
	binary.LittleEndian.PutUint16(pages[message+4:], eventPortReady)
	available := 16 * size // after the descriptors
	for i := range size {
		binary.LittleEndian.PutUint64(pages[16*i:], address+uint64(message))
		binary.LittleEndian.PutUint32(pages[16*i+8:], 8)
		binary.LittleEndian.PutUint16(pages[available+4+2*i:], uint16(i))
	}
	for index := size; device.err == nil; index += size {
		binary.LittleEndian.PutUint16(pages[available+2:], uint16(index))
		device.write16(regQueueNotify, controlQueue) // QEMU handles them before this returns, or soon after
	}
	return device.err
}

// registers are those of a PCI device with an I/O port region.
type registers struct {
	file *os.File
	err  error
}

func (r *registers) write(at int64, value []byte) {
	if _, err := r.file.WriteAt(value, at); err != nil && r.err == nil {
		r.err = err
	}
}

func (r *registers) write8(at int64, value byte) { r.write(at, []byte{value}) }

func (r *registers) write16(at int64, value uint16) {
	r.write(at, binary.LittleEndian.AppendUint16(nil, value))
}

func (r *registers) write32(at int64, value uint32) {
	r.write(at, binary.LittleEndian.AppendUint32(nil, value))
}

func (r *registers) read16(at int64) uint16 {
	value := make([]byte, 2)
	if _, err := r.file.ReadAt(value, at); err != nil && r.err == nil {
		r.err = err
	}
	return binary.LittleEndian.Uint16(value)
}

// takeDevice takes the virtio-serial device from the kernel's driver. The agent is frozen before: it
// would power the guest off.
func takeDevice() (*registers, error) {
	const frozen = "/sys/fs/cgroup/frozen"
	if err := os.Mkdir(frozen, 0o755); err != nil {
		return nil, err
	}
	if err := write(frozen+"/cgroup.procs", "1"); err != nil {
		return nil, err
	}
	if err := write(frozen+"/cgroup.freeze", "1"); err != nil {
		return nil, err
	}
	time.Sleep(time.Second)
	const driver = "/sys/bus/virtio/drivers/virtio_console/"
	devices, _ := filepath.Glob(driver + "virtio*")
	if len(devices) == 0 {
		return nil, errors.New("no virtio-serial device")
	}
	pci, err := filepath.EvalSymlinks(devices[0] + "/..")
	if err != nil {
		return nil, err
	}
	if err := write(driver+"unbind", filepath.Base(devices[0])); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(filepath.Base(pci), "0000:") {
		return nil, fmt.Errorf("%s is not a PCI device", pci)
	}
	file, err := os.OpenFile(pci+"/resource0", os.O_RDWR, 0)
	return &registers{file: file}, err
}

func write(path, text string) error { return os.WriteFile(path, []byte(text), 0) }

// contiguousPages returns two pages that follow each other in physical memory, and their address.
func contiguousPages() (pages []byte, address uint64, err error) {
	const size = 16 << 20
	memory, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_PRIVATE|syscall.MAP_ANONYMOUS|syscall.MAP_POPULATE|syscall.MAP_LOCKED)
	if err != nil {
		return nil, 0, err
	}
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return nil, 0, err
	}
	defer pagemap.Close()
	entries := make([]byte, size/pageSize*8)
	start := int64(uintptr(unsafe.Pointer(&memory[0]))) / pageSize * 8
	if _, err := pagemap.ReadAt(entries, start); err != nil {
		return nil, 0, err
	}
	const frameNumber = 1<<55 - 1
	previous := uint64(0)
	for i := range size / pageSize {
		number := binary.LittleEndian.Uint64(entries[8*i:]) & frameNumber
		if previous != 0 && number == previous+1 {
			return memory[(i-1)*pageSize : (i+1)*pageSize], previous * pageSize, nil
		}
		previous = number
	}
	return nil, 0, errors.New("no two pages follow each other")
}
