package server

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
)

// lines decodes the objects of an NDJSON response.
func (s *session) lines(path string) (lines []map[string]any) {
	s.t.Helper()
	response := s.start("GET", path, "")
	defer response.Body.Close()
	if response.StatusCode != 200 || response.Header.Get("Content-Type") != "application/x-ndjson" {
		s.t.Fatalf("%s: %d", path, response.StatusCode)
	}
	for scanner := bufio.NewScanner(response.Body); scanner.Scan(); {
		var line map[string]any
		if err := json.Unmarshal(scanner.Bytes(), &line); err != nil {
			s.t.Fatalf("%s: %v", scanner.Text(), err)
		}
		lines = append(lines, line)
	}
	return lines
}

func TestList(t *testing.T) {
	s := newGuest(t).connect()
	dir := t.TempDir()
	for i := range 3000 {
		os.WriteFile(fmt.Sprintf("%s/%04d", dir, i), nil, 0o644)
	}
	os.Symlink("/nowhere", dir+"/link")
	lines := s.lines("/v1/files/list" + at(dir))
	if len(lines) != 3002 || lines[3001]["end"] != true {
		t.Fatalf("%d lines", len(lines))
	}
	seen := map[any]any{}
	for _, line := range lines[:3001] {
		seen[line["name"]] = line["type"]
	}
	if len(seen) != 3001 || seen["0000"] != "file" || seen["2999"] != "file" || seen["link"] != "symlink" {
		t.Errorf("%d names", len(seen))
	}
	odd := t.TempDir()
	os.WriteFile(odd+"/\xff\n", nil, 0o644)
	response := s.start("GET", "/v1/files/list"+at(odd), "")
	if body, _ := io.ReadAll(response.Body); !bytes.HasPrefix(body, []byte(`{"name":"\udcff\u000a",`)) {
		t.Errorf("got %s", body)
	}
	s.refused("GET", "/v1/files/list"+at(odd+"/\xff\n"), "", 409, "not_a_directory")
	s.refused("GET", "/v1/files/list"+at(odd+"/none"), "", 404, "no_such_file")
}

func (s *session) post(path string, fields map[string]any) (int, map[string]any) {
	s.t.Helper()
	body, _ := json.Marshal(fields)
	return s.ask("POST", path, string(body))
}

func TestMakeDirectory(t *testing.T) {
	s := newGuest(t).connect()
	dir := t.TempDir()
	is := func(path string, mode os.FileMode) {
		t.Helper()
		if info, err := os.Stat(path); err != nil || info.Mode() != mode|os.ModeDir {
			t.Errorf("%s: %v, %v", path, err, info)
		}
	}
	if status, answer := s.post("/v1/files/mkdir", map[string]any{"path": dir + "/a"}); status != 204 {
		t.Errorf("got %d %v", status, answer)
	}
	is(dir+"/a", 0o755)
	if status, answer := s.post("/v1/files/mkdir", map[string]any{"path": dir + "/b/c/d/", "mode": "1777", "user": "me", "parents": true}); status != 204 {
		t.Errorf("got %d %v", status, answer)
	}
	is(dir+"/b/c", 0o755)
	is(dir+"/b/c/d", 0o777|os.ModeSticky)
	if status, _ := s.post("/v1/files/mkdir", map[string]any{"path": dir + "/a", "mode": "700", "parents": true}); status != 204 {
		t.Errorf("got %d", status)
	}
	is(dir+"/a", 0o755)
	os.WriteFile(dir+"/f", nil, 0o644)
	s.refused("POST", "/v1/files/mkdir", `{"path": "`+dir+`/a"}`, 409, "file_exists")
	s.refused("POST", "/v1/files/mkdir", `{"path": "`+dir+`/f", "parents": true}`, 409, "file_exists")
	s.refused("POST", "/v1/files/mkdir", `{"path": "`+dir+`/x/y"}`, 404, "no_such_file")
	s.refused("POST", "/v1/files/mkdir", `{"path": ""}`, 400, "bad_request")
	s.refused("POST", "/v1/files/mkdir", `{"path": "`+strings.Repeat("/x", 5_000_000)+`", "parents": true}`, 400, "bad_request")
	if status, answer := s.post("/v1/files/mkdir", map[string]any{"path": dir + "/nulls", "mode": nil, "user": nil}); status != 204 {
		t.Errorf("got %d %v", status, answer)
	}
	s.refused("POST", "/v1/files/mkdir", `{"path": "/x", "mode": "9"}`, 400, "bad_request")
}

func TestRename(t *testing.T) {
	s := newGuest(t).connect()
	dir := t.TempDir()
	rename := func(from, to string) string { return `{"from": "` + dir + from + `", "to": "` + dir + to + `"}` }
	os.WriteFile(dir+"/f", []byte("f"), 0o644)
	os.WriteFile(dir+"/g", []byte("g"), 0o644)
	os.MkdirAll(dir+"/d/full", 0o755)
	os.MkdirAll(dir+"/empty", 0o755)
	s.refused("POST", "/v1/files/rename", rename("/none", "/x"), 404, "no_such_file")
	s.refused("POST", "/v1/files/rename", rename("/f", "/none/x"), 404, "no_such_file")
	s.refused("POST", "/v1/files/rename", rename("/f", "/empty"), 409, "is_a_directory")
	s.refused("POST", "/v1/files/rename", rename("/empty", "/f"), 409, "not_a_directory")
	s.refused("POST", "/v1/files/rename", rename("/empty", "/d"), 409, "directory_not_empty")
	s.refused("POST", "/v1/files/rename", rename("/d", "/d/full/x"), 400, "bad_request")
	s.refused("POST", "/v1/files/rename", `{"from": "/x"}`, 400, "bad_request")
	for from, to := range map[string]string{"/f": "/g", "/d": "/empty"} {
		if status, answer := s.ask("POST", "/v1/files/rename", rename(from, to)); status != 204 {
			t.Errorf("got %d %v", status, answer)
		}
	}
	if content(t, dir+"/g") != "f" || strings.Join(entries(t, dir), " ") != "empty g" {
		t.Errorf("left: %q", entries(t, dir))
	}
}

func TestRemove(t *testing.T) {
	s := newGuest(t).connect()
	dir := t.TempDir()
	remove := func(path string, more ...string) {
		t.Helper()
		if status, answer := s.ask("DELETE", "/v1/files"+at(path, more...), ""); status != 204 {
			t.Errorf("%s: got %d %v", path, status, answer)
		}
	}
	os.MkdirAll(dir+"/d/"+strings.Repeat("x/", 200), 0o755)
	for i := range 2000 {
		os.WriteFile(fmt.Sprintf("%s/d/%d", dir, i), nil, 0o400)
	}
	os.Mkdir(dir+"/keep", 0o755)
	os.WriteFile(dir+"/keep/f", nil, 0o644)
	os.Symlink("../keep", dir+"/d/link")
	os.Symlink("keep", dir+"/link")
	remove(dir + "/link")
	s.refused("DELETE", "/v1/files"+at(dir+"/d"), "", 409, "directory_not_empty")
	remove(dir+"/d", "recursive=1")
	if got := entries(t, dir); len(got) != 1 || len(entries(t, dir+"/keep")) != 1 {
		t.Errorf("left: %q", got)
	}
	remove(dir + "/keep/f")
	remove(dir + "/keep")
	s.refused("DELETE", "/v1/files"+at(dir+"/keep"), "", 404, "no_such_file")
	s.refused("DELETE", "/v1/files"+at("/", "recursive=1"), "", 400, "bad_request")
	for _, end := range []string{"/..", "/../"} { // rm -r refuses these too
		inside := dir + "/up/inside"
		if err := os.MkdirAll(inside, 0o755); err != nil {
			t.Fatal(err)
		}
		s.refused("DELETE", "/v1/files"+at(inside+end, "recursive=1"), "", 400, "bad_request")
		if got := entries(t, dir+"/up"); len(got) != 1 {
			t.Errorf("what is in the directory above: %q", got)
		}
	}
}

func TestRemoveDoesNotEnterMounts(t *testing.T) {
	dir := t.TempDir()
	os.MkdirAll(dir+"/d/mounted", 0o755)
	os.Mkdir(dir+"/outside", 0o755)
	os.WriteFile(dir+"/outside/f", nil, 0o644)
	if err := syscall.Mount(dir+"/outside", dir+"/d/mounted", "", syscall.MS_BIND, ""); err != nil {
		t.Skip("cannot mount: ", err)
	}
	defer syscall.Unmount(dir+"/d/mounted", 0)
	s := newGuest(t).connect()
	status, answer := s.ask("DELETE", "/v1/files"+at(dir+"/d", "recursive=1"), "")
	if message := answer["error"].(map[string]any)["message"].(string); status != 400 || message != dir+"/d/mounted: device or resource busy" {
		t.Errorf("got %d %v", status, answer)
	}
	if len(entries(t, dir+"/outside")) != 1 {
		t.Error("the mount was entered")
	}
}

func TestTarThereAndBack(t *testing.T) {
	g := newGuest(t)
	s := g.connect()
	dir := t.TempDir()
	os.MkdirAll(dir+"/from/sub", 0o755)
	os.MkdirAll(dir+"/to", 0o755)
	for i := range 500 {
		os.WriteFile(fmt.Sprintf("%s/from/sub/%d\xff", dir, i), []byte(strings.Repeat("x", i*20)), 0o640)
	}
	response := s.start("GET", "/v1/files/tar"+at(dir+"/from/sub")+"&path="+url.QueryEscape(dir+"/from/sub/0\xff"), "")
	archive, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != 200 || response.Header.Get("Content-Type") != "application/x-tar" {
		t.Fatalf("%d, %v", response.StatusCode, err)
	}
	status, answer := s.ask("PUT", "/v1/files/tar"+at(dir+"/to", "user=me"), string(archive)+strings.Repeat("\x00", 9000))
	if status != 200 || answer["entries"] != 502.0 || answer["bytes"] != 500*499/2*20.0 {
		t.Errorf("got %d %v", status, answer)
	}
	if got := content(t, dir+"/to/sub/499\xff"); len(got) != 499*20 || len(entries(t, dir+"/to")) != 2 {
		t.Errorf("%d bytes, %q", len(got), entries(t, dir+"/to"))
	}
	s.refused("GET", "/v1/files/tar"+at(dir+"/none"), "", 404, "no_such_file")
	s.refused("GET", "/v1/files/tar", "", 400, "bad_request")
	s.refused("GET", "/v1/files/tar?path=/&path=", "", 400, "bad_request")
	s.refused("PUT", "/v1/files/tar"+at(dir+"/none"), "", 404, "no_such_file")
	s.refused("PUT", "/v1/files/tar"+at(dir+"/to/0\xff"), "", 409, "not_a_directory")
	s.refused("PUT", "/v1/files/tar"+at(dir+"/to"), strings.Repeat("noise", 1<<20), 400, "bad_request")
	s.refused("PUT", "/v1/files/tar"+at(dir+"/to", "user=me", "keep_owner=1"), "", 400, "bad_request")
}

func TestAbortedTarLeavesNoHalfFile(t *testing.T) {
	s := newGuest(t).connect()
	dir := t.TempDir()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "whole", Size: 3, Mode: 0o644})
	w.Write([]byte("abc"))
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "half", Size: 4 << 20, Mode: 0o644})
	w.Write(make([]byte, 2<<20))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r, body := io.Pipe()
	request, _ := http.NewRequestWithContext(ctx, "PUT", "http://guest/v1/files/tar"+at(dir), r)
	go func() {
		if response, err := s.Do(request); err == nil {
			response.Body.Close()
		}
	}()
	body.Write(archive.Bytes())
	eventually(t, "the second file is begun", func() bool { return len(entries(t, dir)) == 2 })
	cancel()
	eventually(t, "what was begun has gone", func() bool { return len(entries(t, dir)) == 1 })
	if content(t, dir+"/whole") != "abc" {
		t.Error("the first file is not there")
	}
}

func TestWatchOverHTTP(t *testing.T) {
	s := newGuest(t).connect()
	dir := t.TempDir()
	response := s.start("GET", "/v1/files/watch"+at(dir, "recursive=1"), "")
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	next := func(want string) {
		t.Helper()
		if !lines.Scan() || lines.Text() != strings.ReplaceAll(want, "DIR", dir) {
			t.Fatalf("got %q, %v, want %q", lines.Text(), lines.Err(), want)
		}
	}
	next(`{"type":"ready"}`)
	os.Mkdir(dir+"/\xff", 0o755)
	next(`{"type":"created","path":"DIR/\udcff"}`)
	os.Rename(dir+"/\xff", dir+"/d")
	next(`{"type":"moved","path":"DIR/d","from":"DIR/\udcff"}`)
	os.RemoveAll(dir)
	next(`{"type":"deleted","path":"DIR/d"}`)
	next(`{"end":true}`)
	s.refused("GET", "/v1/files/watch"+at(dir), "", 404, "no_such_file")
	s.refused("GET", "/v1/files/watch"+at("/etc/passwd"), "", 409, "not_a_directory")
}

func TestWatchFreesItsDescriptor(t *testing.T) {
	s := newGuest(t).connect()
	count := func() (n int) {
		for _, name := range entries(t, "/proc/self/fd") {
			if target, _ := os.Readlink("/proc/self/fd/" + name); target == "anon_inode:inotify" {
				n++
			}
		}
		return n
	}
	before := count()
	for range 3 {
		response := s.start("GET", "/v1/files/watch"+at(t.TempDir()), "")
		bufio.NewReader(response.Body).ReadString('\n')
		if count() == before {
			t.Error("no descriptor is open")
		}
		response.Body.Close() // RST_STREAM
		eventually(t, "it is closed", func() bool { return count() == before })
	}
}
