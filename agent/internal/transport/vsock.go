package transport

import (
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"
)

// VsockPort is the vsock port that the agent listens on. A host connects through Firecracker by
// sending "CONNECT 1024" to the VM's unix socket.
const VsockPort = 1024

const (
	afVsock  = 40
	anyCID   = 1<<32 - 1
	localCID = 1
	hostCID  = 2
)

// sockaddrVM is the kernel's struct sockaddr_vm.
type sockaddrVM struct {
	family   uint16
	_        uint16
	port     uint32
	cid      uint32
	flags    uint8
	reserved [3]uint8
}

// hasVsock reports whether the kernel has a vsock device that connects this guest to its host.
// Without such a device, the CID is missing, or it is the CID of the loopback or of a host.
func hasVsock() bool {
	const getLocalCID = 0x7b9 // IOCTL_VM_SOCKETS_GET_LOCAL_CID
	fd, err := syscall.Open("/dev/vsock", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer syscall.Close(fd)
	var cid uint32
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), getLocalCID, uintptr(unsafe.Pointer(&cid)))
	return errno == 0 && cid > hostCID && cid != anyCID
}

// vsockStreams accepts vsock connections from one CID. If the kernel has a vsock loopback,
// processes in the guest can connect too. They must not get the agent's privileges.
type vsockStreams struct {
	file *os.File
	raw  syscall.RawConn
	peer uint32
}

// listenVsock listens on a vsock port for connections from the CID peer. Port anyCID (2^32-1) means
// any free port.
func listenVsock(port, peer uint32) (*vsockStreams, error) {
	fd, err := syscall.Socket(afVsock, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	file := os.NewFile(uintptr(fd), "vsock")
	raw, err := file.SyscallConn()
	if err == nil {
		address := sockaddrVM{family: afVsock, port: port, cid: anyCID}
		_, _, errno := syscall.Syscall(syscall.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&address)), unsafe.Sizeof(address))
		if errno != 0 {
			err = os.NewSyscallError("bind", errno)
		}
	}
	if err == nil {
		err = os.NewSyscallError("listen", syscall.Listen(fd, syscall.SOMAXCONN))
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return &vsockStreams{file, raw, peer}, nil
}

// Accept implements Streams.
func (s *vsockStreams) Accept() (Stream, error) {
	for {
		fd, from, err := s.accept()
		switch {
		case err == syscall.EMFILE || err == syscall.ENFILE || err == syscall.ENOBUFS || err == syscall.ENOMEM:
			time.Sleep(10 * time.Millisecond) // until descriptors or memory are free again
		case err == syscall.ECONNABORTED || err == syscall.ECONNRESET:
		case err != nil:
			return nil, err
		case from != s.peer:
			syscall.Close(fd)
		default:
			return os.NewFile(uintptr(fd), "vsock"), nil
		}
	}
}

// accept waits for a connection, and returns its descriptor and the CID of its peer.
func (s *vsockStreams) accept() (fd int, from uint32, err error) {
	var address sockaddrVM
	waitErr := s.raw.Read(func(listener uintptr) bool {
		for {
			size := uint32(unsafe.Sizeof(address))
			n, _, errno := syscall.Syscall6(syscall.SYS_ACCEPT4, listener, uintptr(unsafe.Pointer(&address)),
				uintptr(unsafe.Pointer(&size)), syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0, 0)
			switch errno {
			case 0:
				fd, from = int(n), address.cid
				return true
			case syscall.EINTR:
			case syscall.EAGAIN:
				return false
			default:
				err = errno
				return true
			}
		}
	})
	if waitErr != nil {
		return 0, 0, net.ErrClosed
	}
	return fd, from, err
}

// Close implements Streams.
func (s *vsockStreams) Close() error { return s.file.Close() }
