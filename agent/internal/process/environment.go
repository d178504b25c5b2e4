package process

import (
	"slices"
	"strings"
)

// DefaultPath is the default of PATH.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment merges the account's variables and the layers; later layers take precedence.
func environment(account Account, layers ...map[string]string) map[string]string {
	merged := map[string]string{
		"PATH": DefaultPath, "HOME": account.Home, "USER": account.Name, "LOGNAME": account.Name, "SHELL": account.Shell,
	}
	for _, layer := range layers {
		for key, value := range layer {
			merged[key] = value
		}
	}
	return merged
}

// environ returns the environment as exec takes it, sorted.
func environ(env map[string]string) []string {
	list := make([]string, 0, len(env))
	for key, value := range env {
		list = append(list, key+"="+value)
	}
	slices.Sort(list)
	return list
}

// CheckEnv rejects names and values that an environment cannot hold.
func CheckEnv(env map[string]string) error {
	for key, value := range env {
		if key == "" || strings.ContainsAny(key, "=\x00") || strings.Contains(value, "\x00") {
			return fail(BadRequest, "invalid environment variable "+quote(key)+": a name cannot be empty or contain \"=\", and a value cannot contain a NUL")
		}
	}
	return nil
}
