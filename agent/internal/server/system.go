package server

import (
	"encoding/base64"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"squib/agent/internal/identity"
	"squib/agent/internal/process"
	"squib/agent/internal/transport"
)

// defaultGrace is the default time for processes to end before power-off.
const defaultGrace = 500 * time.Millisecond

// account describes a user.
func (s *Server) account(w http.ResponseWriter, r *http.Request) error {
	q := queryOf(r)
	actor, err := s.actor(q.Get("user"))
	q.fail(err)
	if q.err != nil {
		return q.err
	}
	b := appendQuoted([]byte(`{"name":`), actor.Name)
	b = strconv.AppendUint(append(b, `,"uid":`...), uint64(actor.UID), 10)
	b = strconv.AppendUint(append(b, `,"gid":`...), uint64(actor.GID), 10)
	b = appendQuoted(append(b, `,"home":`...), actor.Home)
	b = appendQuoted(append(b, `,"shell":`...), actor.Shell)
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(b, "}\n"...))
	return nil
}

func (s *Server) hello(w http.ResponseWriter, r *http.Request) error {
	return writeJSON(w, map[string]any{
		"protocol": transport.Version, "agent_version": s.config.Version, "boot_id": bootID(), "kernel": kernelRelease(),
		"uptime_ms": uptime().Milliseconds(), "set_up": s.gate.passes(),
	})
}

func (s *Server) setup(w http.ResponseWriter, r *http.Request) error {
	var request struct {
		Restored   bool     `json:"restored"`
		Hostname   *text    `json:"hostname"`
		TimeUnixMS *int64   `json:"time_unix_ms"`
		Entropy    *string  `json:"entropy"`
		MachineID  *text    `json:"machine_id"`
		BootID     *text    `json:"boot_id"`
		VMID       *text    `json:"vm_id"`
		Env        *textMap `json:"env"`
	}
	if err := decode(w, r, &request); err != nil {
		return err
	}
	// Validate everything before changing anything. Entropy comes first, so that nothing draws
	// random numbers before it.
	var steps []func() error
	if request.Entropy != nil {
		seed, err := base64.StdEncoding.DecodeString(*request.Entropy)
		if err != nil || len(seed) < identity.MinEntropy || len(seed) > identity.MaxEntropy {
			return badRequest("entropy must be 32 to 512 bytes in base64")
		}
		steps = append(steps, func() error { return s.config.Identity.AddEntropy(seed) })
	}
	if request.TimeUnixMS != nil {
		steps = append(steps, func() error { return s.config.Identity.SetClock(time.UnixMilli(*request.TimeUnixMS)) })
	}
	if request.Hostname != nil {
		name := string(*request.Hostname)
		if err := identity.CheckHostname(name); err != nil {
			return badRequest(err.Error())
		}
		steps = append(steps, func() error { return s.config.Identity.SetHostname(name) })
	}
	if request.MachineID != nil {
		id := string(*request.MachineID)
		if err := identity.CheckMachineID(id); err != nil {
			return badRequest(err.Error())
		}
		steps = append(steps, func() error { return s.config.Identity.SetMachineID(id) })
	}
	if request.BootID != nil {
		id := string(*request.BootID)
		if err := identity.CheckBootID(id); err != nil {
			return badRequest(err.Error())
		}
		steps = append(steps, func() error { return s.config.Identity.SetBootID(id) })
	}
	if request.VMID != nil {
		vm := identity.VM{ID: string(*request.VMID), Name: orEmpty(request.Hostname), MachineID: orEmpty(request.MachineID), BootID: orEmpty(request.BootID)}
		if err := identity.CheckVMID(vm.ID); err != nil {
			return badRequest(err.Error())
		}
		steps = append(steps, func() error { return s.config.Identity.Describe(vm) })
	}
	if request.Env != nil {
		if err := process.CheckEnv(*request.Env); err != nil {
			return err
		}
		steps = append(steps, func() error { s.processes.SetEnv(*request.Env); return nil })
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	if request.Entropy != nil {
		if request.Restored {
			s.processes.Restored()
		}
		if err := s.processes.Thaw(); err != nil {
			return err
		}
		s.gate.open()
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) powerOff(w http.ResponseWriter, r *http.Request) error {
	var request struct {
		GraceMS *int64 `json:"grace_ms"`
	}
	if err := decode(w, r, &request); err != nil {
		return err
	}
	grace := defaultGrace
	if request.GraceMS != nil {
		if *request.GraceMS < 0 || *request.GraceMS > int64(time.Hour/time.Millisecond) {
			return badRequest("grace_ms must be 0 to 3600000")
		}
		grace = time.Duration(*request.GraceMS) * time.Millisecond
	}
	s.processes.Stop()
	w.WriteHeader(http.StatusAccepted)
	http.NewResponseController(w).Flush()
	go s.powerOffOnce.Do(func() {
		s.uploads.abort()
		s.config.PowerOff(grace)
	})
	return nil
}

func bootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id))
}

func kernelRelease() string {
	var uts syscall.Utsname
	syscall.Uname(&uts)
	var b []byte
	for _, c := range uts.Release {
		if c == 0 {
			break
		}
		b = append(b, byte(c))
	}
	return string(b)
}

// uptime returns the time since boot. It does not use /proc, which the guest may unmount.
func uptime() time.Duration {
	const clockBoottime = 7
	var ts syscall.Timespec
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockBoottime, uintptr(unsafe.Pointer(&ts)), 0)
	return time.Duration(ts.Nano())
}
