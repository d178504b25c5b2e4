package transport

import (
	"fmt"
	"net"
	"time"
)

// Listen waits until the host can reach the guest, through a virtio port or through vsock, and returns the listener for
// its sessions. The port is preferred where both exist. The kernel may find either some time after its driver has
// started; Listen waits for that up to timeout.
func Listen(timeout time.Duration) (net.Listener, error) {
	return listen("/sys", hasVsock, timeout)
}

func listen(sys string, hasVsock func() bool, timeout time.Duration) (net.Listener, error) {
	deadline := time.Now().Add(timeout)
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		device, others := findVirtioPort(sys, PortName)
		expired := !time.Now().Before(deadline)
		switch {
		case device != "":
			port, err := openVirtioPort(device)
			if err != nil {
				return nil, err
			}
			return NewPortListener(port), nil
		case hasVsock() && (expired || !hasVirtioConsole(sys)):
			streams, err := listenVsock(VsockPort, hostCID)
			if err != nil {
				return nil, err
			}
			return NewStreamListener(streams), nil
		case expired:
			return nil, fmt.Errorf("no vsock device and no virtio port called %q; virtio ports: %q", PortName, others)
		}
		time.Sleep(wait)
	}
}
