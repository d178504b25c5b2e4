package process

import (
	"cmp"
	"path"
	"strconv"
	"strings"
	"time"
)

// Spec describes a command. Exactly one of Argv, Shell and Login is set.
type Spec struct {
	Argv       []string
	Shell      *string           // a command for /bin/sh -c
	Login      bool              // run the user's login shell
	Env        map[string]string // added to the variables of the account and of the guest
	Cwd        string            // relative to the user's home; empty means that home, or / if that cannot be entered
	User       string            // see Accounts.Lookup; empty means root
	Sudo       bool              // run as root on behalf of User
	Stdin      bool              // a pipe instead of /dev/null; ignored with a terminal
	Terminal   *Size             // a new terminal of this size for all three streams
	Timeout    time.Duration     // zero means no timeout
	Background bool

	RestoreSignal int // sent when the command goes on in another VM, or at a later time; 0 means none
}

// plan is a Spec resolved in this guest.
type plan struct {
	account Account
	argv    []string
	paths   []string // candidate files of the program, best first
	env     map[string]string
	cwd     string
}

// shownBytes bounds the arguments that a session keeps for listings; an argument may be a whole
// script.
const shownBytes = 2048

// shortened returns the first shownBytes of argv. Each argument counts one byte more than its
// length.
func shortened(argv []string) (shown []string) {
	left := shownBytes
	for _, arg := range argv {
		if left <= 0 {
			break
		}
		shown = append(shown, strings.Clone(arg[:min(len(arg), left)]))
		left -= len(arg) + 1
	}
	return shown
}

func (m *Manager) plan(spec Spec, guest map[string]string) (p plan, err error) {
	user, err := m.accounts.Lookup(cmp.Or(spec.User, "root"))
	if err != nil {
		return p, err
	}
	p.account = user
	defaults := map[string]string{}
	if spec.Terminal != nil {
		defaults["TERM"] = "xterm-256color"
	}
	if spec.Sudo {
		if p.account, err = m.accounts.Lookup("root"); err != nil {
			return p, err
		}
		defaults["SUDO_USER"] = user.Name
		defaults["SUDO_UID"] = strconv.FormatUint(uint64(user.UID), 10)
		defaults["SUDO_GID"] = strconv.FormatUint(uint64(user.GID), 10)
	}
	if err := CheckEnv(spec.Env); err != nil {
		return p, err
	}
	program := ""
	switch {
	case spec.Login:
		if program, err = loginShell(p.account); err != nil {
			return p, err
		}
		p.account.Shell = program
		p.argv = []string{"-" + path.Base(program)}
	case spec.Shell != nil:
		program = "/bin/sh"
		if executable(program) != nil {
			return p, fail(NoShell, "the image has no /bin/sh; use argv")
		}
		p.argv = []string{program, "-c", *spec.Shell}
	default:
		program, p.argv = spec.Argv[0], spec.Argv
	}
	p.env = environment(p.account, defaults, guest, spec.Env)
	if p.cwd, err = workingDirectory(p.account, user.Home, spec.Cwd); err != nil {
		return p, err
	}
	p.paths, err = resolve(p.account, program, p.cwd, p.env["PATH"])
	return p, err
}

// loginShell returns the account's shell, or a substitute if that does not allow logins.
func loginShell(account Account) (shell string, err error) {
	account.As(func() {
		for _, candidate := range []string{account.Shell, "/bin/bash", "/bin/sh"} {
			if name := path.Base(candidate); name == "nologin" || name == "false" || !path.IsAbs(candidate) {
				continue
			}
			if executable(candidate) == nil {
				shell = candidate
				return
			}
		}
		err = fail(NoShell, "no usable shell: tried "+quote(account.Shell)+" (from /etc/passwd), /bin/bash and /bin/sh; use argv")
	})
	return shell, err
}

// workingDirectory returns the requested directory, or the default.
func workingDirectory(account Account, home, asked string) (string, error) {
	if asked == "" {
		var err error
		account.As(func() { err = checkWorkingDirectory(home) })
		if err != nil || !path.IsAbs(home) {
			return "/", nil
		}
		return home, nil
	}
	return absolute(home, asked), nil
}
