package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"squib/agent/internal/identity"
	"squib/agent/internal/process"
	"squib/agent/internal/server"
	"squib/agent/internal/transport"
)

// runOnHost is what the program does when it is not the first process: "serve-unix SOCKET ROOT" serves the protocol for
// tests; otherwise the program prints its version.
func runOnHost(args []string) {
	if len(args) != 3 || args[0] != "serve-unix" {
		fmt.Println("squib-agent", version)
		return
	}
	if err := serveUnix(args[1], args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "squib-agent:", err)
		os.Exit(1)
	}
}

// serveUnix serves the protocol on a unix socket, without a VM: see protocol/agent.md, section 5. Commands and file
// requests run as the user who started the agent, on this machine. Users and groups come from etc/passwd and etc/group
// below root, not from those of the machine.
//
// Nothing here boots, mounts, makes cgroups, sets the machine's identity or signals processes that the agent has not
// started. It ends with its standard input, so that an agent never outlives its test.
func serveUnix(socket, root string) error {
	syscall.Umask(0o177) // 0600: a client acts as this user
	listener, err := net.Listen("unix", socket)
	syscall.Umask(0o022) // as in a guest
	if err != nil {
		return err
	}
	reaper := process.NewReaper()
	go reaper.Run()
	accounts := process.Accounts{Root: root}
	processes := process.NewManager(reaper, nil, accounts)
	sessions := transport.NewStreamListener(transport.NetStreams(listener))
	end := func(grace time.Duration) {
		time.Sleep(grace) // lets the response reach the client
		sessions.Close()
		for _, p := range processes.List() {
			p.Kill()
		}
		os.Exit(0)
	}
	go func() {
		io.Copy(io.Discard, os.Stdin)
		end(0)
	}()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-signals
		end(0)
	}()
	s := server.New(processes, server.Config{
		Version:  version,
		Identity: hostIdentity{},
		Accounts: accounts,
		PowerOff: end,
		Log:      log.New(os.Stderr, "squib-agent: ", 0),
	})
	fmt.Println("squib-agent: ready")
	if err := s.Serve(sessions); !errors.Is(err, net.ErrClosed) {
		return err
	}
	select {} // end terminates the process
}

// hostIdentity accepts an identity and applies nothing: this machine keeps its own.
type hostIdentity struct{}

func (hostIdentity) Describe(identity.VM) error { return nil }
func (hostIdentity) AddEntropy([]byte) error    { return nil }
func (hostIdentity) SetClock(time.Time) error   { return nil }
func (hostIdentity) SetHostname(string) error   { return nil }
func (hostIdentity) SetMachineID(string) error  { return nil }
func (hostIdentity) SetBootID(string) error     { return nil }
