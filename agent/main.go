// Command squib-agent is the first process of a squib guest. It boots the guest from the initramfs,
// and then serves the host over a virtio port or vsock. See protocol/agent.md for the protocol.
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
	// Reserve the main thread for the main goroutine. The kernel takes the main thread's identity
	// for the process's: it owns the files in /proc and decides who may send signals. Other
	// goroutines give their threads a user's identity for a while.
	runtime.LockOSThread()
}

func main() {
	if os.Getpid() != 1 {
		runOnHost(os.Args[1:])
		return
	}
	ignoreSignals()
	// A goroutine that waits in a system call occupies its processor for a while. One processor
	// more than the guest has keeps the others running; many more would only wake each other up.
	runtime.GOMAXPROCS(min(max(runtime.NumCPU(), 2), 4))

	boundGarbage()

	guest, err := boot.Run()
	if err != nil {
		guest.Fatal(err)
	}
	guest.Fatal(serve(guest))
}

// garbageShare is the divisor of the guest's memory above which the agent collects garbage more
// often and returns memory. By default, Go lets garbage grow to the size of the memory in use, and
// keeps it for minutes.
const garbageShare = 4

func boundGarbage() {
	var info syscall.Sysinfo_t
	if syscall.Sysinfo(&info) == nil {
		debug.SetMemoryLimit(int64(uint64(info.Totalram) * uint64(info.Unit) / garbageShare))
	}
}

// serve serves the host until the guest powers off.
func serve(guest *boot.Guest) error {
	reaper := process.NewReaper()
	go reaper.Run()
	cgroups, err := process.OpenCgroups(boot.CgroupDir, "squib")
	if err != nil {
		guest.Console.Print("commands run without cgroups: " + err.Error())
	} else if limits, err := process.GuestLimits(); err != nil {
		guest.Console.Print("commands run without limits: " + err.Error())
	} else {
		cgroups.Limit(boot.CgroupDir, limits)
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
		Records:  guest.Records,
		PowerOff: func(grace time.Duration) { guest.PowerOff(grace, reaper.Childless) },
		Log:      log.New(guest.Console, "", 0),
	})
	guest.Console.Print("ready")
	return &boot.StepError{Step: "serve", Err: s.Serve(listener)}
}

// ignoreSignals catches and drops the signals that a process in the guest could send to PID 1 and
// that terminate Go programs. The kernel protects PID 1 only from signals without a handler, and
// the Go runtime installs handlers. The signals are not set to be ignored, because commands would
// inherit that.
func ignoreSignals() {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTRAP, syscall.SIGABRT,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGPIPE, syscall.SIGALRM, syscall.SIGTERM, syscall.SIGSTKFLT, syscall.SIGXCPU,
		syscall.SIGXFSZ, syscall.SIGVTALRM, syscall.SIGPROF, syscall.SIGIO, syscall.SIGPWR, syscall.SIGSYS)
}
