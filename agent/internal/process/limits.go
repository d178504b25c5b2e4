package process

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Share of the guest's memory and number of processes that commands may use. Part of the memory is
// left to the agent, and as much to the other commands when one command takes all that it may: the
// kernel then kills a process of that command, and no other.
const (
	reserveShare = 16
	reserveLeast = 8 << 20
	reserveMost  = 64 << 20
	processLeast = 128
	processMiB   = 2 // processes for each MiB of memory
)

// CommandLimits are the limits of the commands' cgroups.
type CommandLimits struct {
	Memory    int64 // bytes of one command
	Together  int64 // bytes of all commands together
	Processes int64 // of one command
}

// LimitsFor returns the limits for a guest. total is its memory in bytes. available is the part that
// is free when no command runs.
func LimitsFor(total, available int64) CommandLimits {
	reserve := min(max(total/reserveShare, reserveLeast), reserveMost)
	together := max(available-reserve, total/2)
	return CommandLimits{
		Memory:    max(together-reserve, total/2),
		Together:  together,
		Processes: max(total>>20*processMiB, processLeast),
	}
}

// GuestLimits returns the limits in this guest, by /proc/meminfo.
func GuestLimits() (CommandLimits, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return CommandLimits{}, err
	}
	values := map[string]int64{}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) >= 2 {
			kib, _ := strconv.ParseInt(fields[1], 10, 64)
			values[strings.TrimSuffix(fields[0], ":")] = kib << 10
		}
	}
	return LimitsFor(values["MemTotal"], values["MemAvailable"]), nil
}

// Limit applies limits to all commands together, and to each that is started from now on. mount is the cgroup hierarchy. Controllers that the kernel lacks are left out.
func (c *Cgroups) Limit(mount string, limits CommandLimits) {
	own := filepath.Join(mount, filepath.Base(c.dir.Name()))
	for _, controller := range []string{"+memory", "+pids"} {
		for _, dir := range []string{mount, own} {
			os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte(controller), 0)
		}
	}
	if limits.Together > 0 {
		os.WriteFile(filepath.Join(own, "memory.max"), strconv.AppendInt(nil, limits.Together, 10), 0)
	}
	c.limits = limits
}

// limit sets the limits of a new cgroup.
func (g *Cgroup) limit(limits CommandLimits) {
	if limits.Memory > 0 {
		g.write("memory.max", strconv.FormatInt(limits.Memory, 10))
		g.events, _ = g.open("memory.events", syscall.O_RDONLY)
	}
	if limits.Processes > 0 {
		g.write("pids.max", strconv.FormatInt(limits.Processes, 10))
	}
}

// OOMKilled reports whether the kernel has killed a process in the cgroup for lack of memory.
func (g *Cgroup) OOMKilled() bool {
	var b [eventsBytes]byte
	n, _ := g.events.ReadAt(b[:], 0)
	for line := range strings.Lines(string(b[:n])) {
		if count, ok := strings.CutPrefix(line, "oom_kill "); ok {
			return strings.TrimSpace(count) != "0"
		}
	}
	return false
}
