package process

import (
	"slices"
	"strconv"
	"strings"

	"squib/agent/internal/guestfile"
)

// Accounts looks up users and groups in the image's files only. The agent does not load the guest's
// NSS modules.
type Accounts struct {
	// Root is the directory above etc; empty means /.
	Root string
}

// Account is the identity that a command runs with.
type Account struct {
	UID, GID uint32
	Groups   []uint32 // GID, then the supplementary groups
	Name     string   // the user ID in decimal if no name is known
	Home     string
	Shell    string
}

// Lookup resolves "name", "uid", "name:group" or "uid:gid". A user ID without an entry gets group 0
// and home /; so does root in an image without accounts.
func (a Accounts) Lookup(spec string) (Account, error) {
	user, group, withGroup := strings.Cut(spec, ":")
	account, err := a.user(user)
	if err != nil {
		return Account{}, err
	}
	groups := a.lines("etc/group", 4)
	if withGroup {
		gid, err := findGroup(groups, group)
		if err != nil {
			return Account{}, err
		}
		account.GID = gid
	}
	account.Groups = []uint32{account.GID}
	for _, entry := range groups {
		gid, ok := parseID(entry[2])
		if ok && !slices.Contains(account.Groups, gid) && slices.Contains(strings.Split(entry[3], ","), account.Name) {
			account.Groups = append(account.Groups, gid)
		}
	}
	return account, nil
}

func (a Accounts) user(user string) (Account, error) {
	entries := a.lines("etc/passwd", 7)
	for _, entry := range entries {
		if entry[0] == user && user != "" {
			if account, ok := parseUser(entry); ok {
				return account, nil
			}
		}
	}
	uid, ok := parseID(user)
	if user == "root" {
		uid, ok = 0, true
	}
	if !ok {
		return Account{}, fail(NoSuchUser, quote(user)+": no such user in /etc/passwd")
	}
	for _, entry := range entries {
		if account, ok := parseUser(entry); ok && account.UID == uid {
			return account, nil
		}
	}
	return Account{UID: uid, Name: user, Home: "/", Shell: "/bin/sh"}, nil
}

func parseUser(entry []string) (Account, bool) {
	uid, ok1 := parseID(entry[2])
	gid, ok2 := parseID(entry[3])
	account := Account{UID: uid, GID: gid, Name: entry[0], Home: entry[5], Shell: entry[6]}
	if account.Home == "" {
		account.Home = "/"
	}
	if account.Shell == "" {
		account.Shell = "/bin/sh"
	}
	return account, ok1 && ok2
}

func findGroup(groups [][]string, name string) (uint32, error) {
	for _, entry := range groups {
		if gid, ok := parseID(entry[2]); ok && entry[0] == name && name != "" {
			return gid, nil
		}
	}
	if gid, ok := parseID(name); ok {
		return gid, nil
	}
	return 0, fail(NoSuchUser, quote(name)+": no such group in /etc/group")
}

// lines returns the entries of a file with at least n fields. A missing file has no entries.
func (a Accounts) lines(name string, n int) (entries [][]string) {
	content, _ := guestfile.Read(a.Root + "/" + name)
	for line := range strings.Lines(string(content)) {
		if entry := strings.Split(strings.TrimRight(line, "\r\n"), ":"); len(entry) >= n {
			entries = append(entries, entry)
		}
	}
	return entries
}

// parseID parses a user or group ID. The highest value means "unchanged" to the kernel and is not
// valid.
func parseID(s string) (uint32, bool) {
	id, err := strconv.ParseUint(s, 10, 32)
	return uint32(id), err == nil && id != 1<<32-1
}

func quote(s string) string { return strconv.Quote(s) }
