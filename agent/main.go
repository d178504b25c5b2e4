// Command squib-agent is the first process of a squib guest. It boots the guest from the initramfs and then does what the host
// asks over a virtio port or vsock; protocol/agent.md is its contract.
package main

import (
	"log"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"squib/agent/internal/boot"
	"squib/agent/internal/identity"
	"squib/agent/internal/process"
	"squib/agent/internal/server"
	"squib/agent/internal/transport"
)

// version is set by the linker.
var version = "0.0.0"

// listenTimeout bounds the wait for the virtio port or the vsock device to appear.
const listenTimeout = 10 * time.Second

func init() {
	// The main goroutine keeps the main thread to itself: what the kernel knows as the process (its owner in /proc, who may
	// signal it) must not change when another goroutine gives its thread a user's identity.
	runtime.LockOSThread()
}

func main() {
	if os.Getpid() != 1 {
		runOnHost(os.Args[1:])
		return
	}
	ignoreSignals()
	// The agent waits in system calls, and a goroutine that waits there holds its processor for a while: one more than the
	// guest has keeps the others going. Many would only wake each other.
	runtime.GOMAXPROCS(min(max(runtime.NumCPU(), 2), 4))

	boundGarbage()

	guest, err := boot.Run()
	if err != nil {
		guest.Fatal(err)
	}
	guest.Fatal(serve(guest))
}

// garbageShare of the guest's memory is what the agent takes before it looks for garbage more often, and gives it back. By itself Go lets
// garbage grow to the size of all that is in use, after two hundred requests at a time too, and keeps it for minutes.
const garbageShare = 4

func boundGarbage() {
	var info syscall.Sysinfo_t
	if syscall.Sysinfo(&info) == nil {
		debug.SetMemoryLimit(int64(uint64(info.Totalram) * uint64(info.Unit) / garbageShare))
	}
}

// serve answers the host for as long as the guest lives.
func serve(guest *boot.Guest) error {
	reaper := process.NewReaper()
	go reaper.Run()
	cgroups, err := process.OpenCgroups(boot.CgroupDir, "squib")
	if err != nil {
		guest.Console.Print("commands run without cgroups: " + err.Error())
	}
	accounts := process.Accounts{}
	processes := process.NewManager(reaper, cgroups, accounts)
	listener, err := transport.Listen(listenTimeout)
	if err != nil {
		return &boot.StepError{Step: "listen for the host", Err: err}
	}
	s := server.New(processes, server.Config{
		Version:  version,
		Identity: identity.Guest{},
		Accounts: accounts,
		PowerOff: func(grace time.Duration) { guest.PowerOff(grace, reaper.Childless) },
		Log:      log.New(guest.Console, "", 0),
	})
	guest.Console.Print("ready")
	return &boot.StepError{Step: "serve", Err: s.Serve(listener)}
}

// ignoreSignals takes and drops the signals that a process of the guest can send to PID 1 and that would end a Go program. The kernel
// shields PID 1 only from signals that it has no handler for, and the Go runtime has one for each. They are not
// set to be ignored, since commands would inherit that.
func ignoreSignals() {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTRAP, syscall.SIGABRT,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGPIPE, syscall.SIGALRM, syscall.SIGTERM, syscall.SIGSTKFLT, syscall.SIGXCPU,
		syscall.SIGXFSZ, syscall.SIGVTALRM, syscall.SIGPROF, syscall.SIGIO, syscall.SIGPWR, syscall.SIGSYS)
}
