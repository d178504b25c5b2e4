package server

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const alice = 12345

// shared returns a directory that every user can reach, with alice's home in it, and a guest that
// knows her.
func shared(t *testing.T) (dir string, s *session) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can act as another user")
	}
	dir = t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	os.Mkdir(dir+"/home", 0o755)
	os.Chown(dir+"/home", alice, alice)
	os.Mkdir(dir+"/private", 0o700)
	os.WriteFile(dir+"/private/file", []byte("secret"), 0o644)
	os.WriteFile(dir+"/public", []byte("public"), 0o644)
	g := newGuest(t)
	os.WriteFile(g.root+"/etc/passwd", fmt.Appendf(nil, "root:x:0:0::/root:/bin/sh\nalice:x:%d:%d::%s/home:/bin/sh\n", alice, alice, dir), 0o644)
	return dir, g.connect()
}

const asAlice = "as_user=alice"

func TestFilesWithTheRightsOfAUser(t *testing.T) {
	dir, s := shared(t)
	body := func(path string) string { return fmt.Sprintf(`{"path": %q, "as_user": "alice"}`, path) }
	os.Symlink(dir+"/private/file", dir+"/home/link")
	os.Symlink(dir+"/private", dir+"/home/dirlink")
	for _, denied := range []struct{ method, path, body string }{
		{"GET", "/v1/files" + at(dir+"/private/file", asAlice), ""},
		{"GET", "/v1/files" + at("link", asAlice), ""},
		{"GET", "/v1/files/stat" + at(dir+"/private/file", asAlice), ""},
		{"GET", "/v1/files/list" + at(dir+"/private", asAlice), ""},
		{"GET", "/v1/files/tar" + at("dirlink/file", asAlice), ""},
		{"GET", "/v1/files/watch" + at(dir+"/private", asAlice), ""},
		{"PUT", "/v1/files" + at(dir+"/new", asAlice), "x"},
		{"PUT", "/v1/files" + at("dirlink/new", asAlice), "x"},
		{"PUT", "/v1/files" + at(dir+"/public", asAlice), "x"},
		{"PUT", "/v1/files" + at("new", asAlice, "user=root"), "x"},
		{"PUT", "/v1/files/tar" + at(dir+"/tree", asAlice, "create=1"), ""},
		{"PUT", "/v1/files/tar" + at("dirlink", asAlice), ""},
		{"POST", "/v1/files/mkdir", body(dir + "/new")},
		{"POST", "/v1/files/mkdir", strings.Replace(body(dir+"/new/deep"), "{", `{"parents": true, `, 1)},
		{"POST", "/v1/files/rename", fmt.Sprintf(`{"from": %q, "to": "mine", "as_user": "alice"}`, dir+"/public")},
		{"DELETE", "/v1/files" + at(dir+"/public", asAlice), ""},
	} {
		s.refused(denied.method, denied.path, denied.body, 403, "permission_denied")
	}
	if names := entries(t, dir+"/home"); len(names) != 2 {
		t.Errorf("left: %v", names)
	}
	if text, _ := s.bytesOf(dir+"/public", asAlice); text != "public" {
		t.Errorf("got %q", text)
	}
	s.refused("GET", "/v1/files"+at(dir+"/public", "as_user=nobody"), "", 422, "no_such_user")
}

// The files of the agent itself are open in it, and /proc leads to them past closed directories.
func TestAUserDoesNotReachTheFilesOfTheAgent(t *testing.T) {
	dir, s := shared(t)
	private, err := os.Open(dir + "/private")
	if err != nil {
		t.Fatal(err)
	}
	defer private.Close()
	open := fmt.Sprintf("/proc/self/fd/%d", private.Fd())
	os.Symlink(open, dir+"/home/link")
	for _, path := range []string{open + "/file", "link/file", "/proc/self/environ"} {
		if status, answer := s.ask("GET", "/v1/files"+at(path, asAlice), ""); status == 200 {
			t.Errorf("%s: read, %v", path, answer)
		}
	}
	if status, _ := s.ask("GET", "/v1/files/list"+at("link", asAlice), ""); status == 200 {
		t.Error("listed")
	}
	if status, _ := s.ask("PUT", "/v1/files"+at("link/new", asAlice), "x"); status == 200 {
		t.Error("written")
	}
}

func TestWhatAUserCreatesIsTheUsers(t *testing.T) {
	dir, s := shared(t)
	if status, info := s.ask("PUT", "/v1/files"+at("a/b/file", asAlice, "parents=1"), "x"); status != 200 || info["uid"] != float64(alice) || info["gid"] != float64(alice) {
		t.Errorf("got %d %v", status, info)
	}
	s.ask("POST", "/v1/files/mkdir", `{"path": "made", "as_user": "alice"}`)
	s.ask("POST", "/v1/files/rename", `{"from": "a", "to": "c", "as_user": "alice"}`)
	for _, path := range []string{"/home/c", "/home/c/b", "/home/c/b/file", "/home/made"} {
		var st syscall.Stat_t
		if err := syscall.Lstat(dir+path, &st); err != nil || st.Uid != alice {
			t.Errorf("%s: %v, owner %d", path, err, st.Uid)
		}
	}
	// A file of another user that alice may write becomes hers, without its set-ID bits.
	os.WriteFile(dir+"/home/roots", nil, 0o644)
	os.Chmod(dir+"/home/roots", os.ModeSetuid|0o777)
	if status, info := s.ask("PUT", "/v1/files"+at("roots", asAlice), "x"); status != 200 || info["uid"] != float64(alice) || info["mode"] != float64(0o777) {
		t.Errorf("got %d %v", status, info)
	}
}

func TestAccounts(t *testing.T) {
	dir, s := shared(t)
	if status, answer := s.ask("GET", "/v1/account?user=alice", ""); status != 200 || answer["home"] != dir+"/home" || answer["uid"] != float64(alice) || answer["name"] != "alice" {
		t.Errorf("got %d %v", status, answer)
	}
	if status, answer := s.ask("GET", "/v1/account", ""); status != 200 || answer["home"] != "/root" {
		t.Errorf("got %d %v", status, answer)
	}
	s.refused("GET", "/v1/account?user=none", "", 422, "no_such_user")
}
