package process

import (
	"errors"
	"strings"
	"time"
)

// freezePatience bounds the wait until all processes of commands have stopped. The kernel takes
// milliseconds, except for a process that waits for a device.
const freezePatience = 3 * time.Second

// Freeze stops all processes of commands, and lets no command start, until Thaw. It fails if they
// do not stop in time, or if they run without cgroups; then nothing is changed. Idempotent.
func (m *Manager) Freeze() error {
	m.freezing.Lock()
	defer m.freezing.Unlock()
	if m.frozen {
		return nil
	}
	deadline := time.Now().Add(freezePatience)
	for !m.starting.TryLock() { // a command that is just starting would wait for its own exec
		if time.Now().After(deadline) {
			return errors.New("a command that is starting does not get on")
		}
		time.Sleep(time.Millisecond)
	}
	if err := m.freeze(); err != nil {
		m.starting.Unlock()
		return err
	}
	m.frozen = true
	return nil
}

func (m *Manager) freeze() error {
	if m.cgroups != nil {
		return m.cgroups.freeze(freezePatience)
	}
	for _, p := range m.List() {
		if p.Lives() {
			return errors.New("commands run without cgroups, so they cannot be stopped")
		}
	}
	return nil
}

// Thaw lets the processes go on. Idempotent.
func (m *Manager) Thaw() error {
	m.freezing.Lock()
	defer m.freezing.Unlock()
	if !m.frozen {
		return nil
	}
	if m.cgroups != nil {
		if err := m.cgroups.whole().write("cgroup.freeze", "0"); err != nil {
			return err
		}
	}
	m.frozen = false
	m.starting.Unlock()
	return nil
}

// Restored prepares the commands of a frozen guest to go on in another VM or at a later time: it kills
// foreground commands, and sends the others the signal that they have asked for, which they get first
// when they go on. It does nothing unless the guest is frozen.
func (m *Manager) Restored() {
	m.freezing.Lock()
	defer m.freezing.Unlock()
	if !m.frozen {
		return
	}
	for _, p := range m.List() {
		if !p.Background {
			p.Kill()
		} else if p.restoreSignal != 0 {
			p.Signal(p.restoreSignal) // if it has ended meanwhile, nobody waits for the signal
		}
	}
}

// whole returns the cgroup above those of all commands.
func (c *Cgroups) whole() *Cgroup { return &Cgroup{all: c, name: ".", dir: c.dir} }

// freeze stops all processes, or fails and stops none.
func (c *Cgroups) freeze(patience time.Duration) error {
	whole := c.whole()
	if err := whole.write("cgroup.freeze", "1"); err != nil {
		return err
	}
	deadline := time.Now().Add(patience)
	for wait := 200 * time.Microsecond; ; wait = min(2*wait, 5*time.Millisecond) {
		events, err := whole.read("cgroup.events", eventsBytes)
		if err == nil && strings.Contains(events, "frozen 1") {
			return nil
		}
		if err == nil && time.Now().After(deadline) {
			err = errors.New("the processes of commands did not stop in time")
		}
		if err != nil {
			whole.write("cgroup.freeze", "0")
			return err
		}
		time.Sleep(wait)
	}
}
