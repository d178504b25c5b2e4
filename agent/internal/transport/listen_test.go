package transport

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestPortIsFoundByItsName(t *testing.T) {
	sys := t.TempDir()
	write(t, sys+"/class/virtio-ports/vport0p1/name", "org.qemu.guest_agent.0\n")
	if device, others := findVirtioPort(sys, PortName); device != "" || len(others) != 1 || others[0] != "org.qemu.guest_agent.0" {
		t.Errorf("got %q, %q", device, others)
	}
	write(t, sys+"/class/virtio-ports/vport0p2/name", PortName+"\n")
	if device, _ := findVirtioPort(sys, PortName); device != "/dev/vport0p2" {
		t.Errorf("got %q", device)
	}
}

func TestPortIsPreferredToVsock(t *testing.T) {
	sys := t.TempDir()
	write(t, sys+"/class/virtio-ports/vportsquibtest/name", PortName+"\n")
	asked := false
	_, err := listen(sys, func() bool { asked = true; return true }, time.Second)
	if asked || !errors.Is(err, os.ErrNotExist) { // no such device here
		t.Errorf("vsock was asked for: %v; %v", asked, err)
	}
}

// A console device may still provide the port: until the timeout, vsock is not used instead.
func TestVsockWaitsForAConsoleDevice(t *testing.T) {
	sys := t.TempDir()
	write(t, sys+"/bus/virtio/devices/virtio0/device", "0x0003\n")
	calls := 0
	hasVsock := func() bool {
		if calls++; calls == 3 {
			write(t, sys+"/class/virtio-ports/vportsquibtest/name", PortName+"\n")
		}
		return true
	}
	_, err := listen(sys, hasVsock, 10*time.Second)
	if calls != 3 || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%d calls, %v", calls, err)
	}
}

func TestNeitherPortNorVsock(t *testing.T) {
	sys := t.TempDir()
	write(t, sys+"/class/virtio-ports/vport0p1/name", "other\n")
	_, err := listen(sys, func() bool { return false }, 3*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), PortName) || !strings.Contains(err.Error(), `"other"`) {
		t.Errorf("got %v", err)
	}
}

// loopback listens on a free vsock port for connections from peer, and connects to it.
func loopback(t *testing.T, peer uint32) (*vsockStreams, *os.File) {
	streams, err := listenVsock(anyCID, peer)
	if err != nil {
		t.Skip("no vsock on this machine: ", err)
	}
	t.Cleanup(func() { streams.Close() })
	var own sockaddrVM
	size := uint32(unsafe.Sizeof(own))
	streams.raw.Control(func(fd uintptr) {
		syscall.Syscall(syscall.SYS_GETSOCKNAME, fd, uintptr(unsafe.Pointer(&own)), uintptr(unsafe.Pointer(&size)))
	})
	fd, err := syscall.Socket(afVsock, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	const connectTimeout = 6 // SO_VM_SOCKETS_CONNECT_TIMEOUT
	limit := syscall.Timeval{Usec: 200_000}
	syscall.Syscall6(syscall.SYS_SETSOCKOPT, uintptr(fd), afVsock, connectTimeout, uintptr(unsafe.Pointer(&limit)), unsafe.Sizeof(limit), 0)
	to := sockaddrVM{family: afVsock, port: own.port, cid: localCID}
	_, _, errno := syscall.Syscall(syscall.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&to)), unsafe.Sizeof(to))
	if errno != 0 {
		syscall.Close(fd)
		t.Skip("no vsock loopback on this machine (module vsock_loopback): ", errno)
	}
	syscall.SetNonblock(fd, true)
	host := os.NewFile(uintptr(fd), "host")
	t.Cleanup(func() { host.Close() })
	host.SetDeadline(time.Now().Add(5 * time.Second))
	return streams, host
}

func TestVsockCarriesASession(t *testing.T) {
	streams, host := loopback(t, localCID)
	l := NewStreamListener(streams)
	nonce := strings.Repeat("0a", 16)
	answer := make([]byte, len("SQUIB-OK 1 "+nonce+"\n"))
	io.WriteString(host, "SQUIB-SYNC 1 "+nonce+"\n")
	if _, err := io.ReadFull(host, answer); err != nil {
		t.Fatal(err)
	}
	io.WriteString(host, "SQUIB-GO 1 "+nonce+"\n"+clientPreface)
	session, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(clientPreface))
	if _, err := io.ReadFull(session, got); err != nil || string(got) != clientPreface {
		t.Errorf("got %q, %v", got, err)
	}
	host.Close()
	if _, err := session.Read(got); err == nil {
		t.Error("the session outlives its stream")
	}
	session.Close()
	l.Close()
	if _, err := l.Accept(); err != net.ErrClosed {
		t.Errorf("after Close: %v", err)
	}
}

func TestVsockRejectsProcessesOfTheGuest(t *testing.T) {
	streams, guest := loopback(t, hostCID)
	go streams.Accept()
	if n, err := guest.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %d bytes, %v", n, err)
	}
}
