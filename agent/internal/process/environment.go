package process

import (
	"slices"
	"strings"
)

// DefaultPath is PATH where neither the setup nor the request sets it.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment merges, later over earlier: what belongs to the account, the guest's own, and the request's.
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

// environ gives the environment the form that exec takes, sorted.
func environ(env map[string]string) []string {
	list := make([]string, 0, len(env))
	for key, value := range env {
		list = append(list, key+"="+value)
	}
	slices.Sort(list)
	return list
}

// CheckEnv refuses names and values that no environment can hold.
func CheckEnv(env map[string]string) error {
	for key, value := range env {
		if key == "" || strings.ContainsAny(key, "=\x00") || strings.Contains(value, "\x00") {
			return fail(BadRequest, "env: "+quote(key)+" is not a name, or its value holds a NUL")
		}
	}
	return nil
}
