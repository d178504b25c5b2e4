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
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// at returns the query of a request about path, with more parameters.
func at(path string, more ...string) string {
	return "?" + strings.Join(append(more, "path="+url.QueryEscape(path)), "&")
}

func (s *session) bytesOf(path string, more ...string) (string, *http.Response) {
	s.t.Helper()
	response := s.start("GET", "/v1/files"+at(path, more...), "")
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != 200 {
		s.t.Fatalf("%s: %d, %v, %.200s", path, response.StatusCode, err, body)
	}
	return string(body), response
}

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func entries(t *testing.T, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range list {
		names = append(names, entry.Name())
	}
	return names
}

func TestWriteAndReadAFile(t *testing.T) {
	s := newGuest(t).connect()
	path := t.TempDir() + "/a \xff+&%\n"
	data := strings.Repeat("0123456789abcdef", 1<<20) + "end" // 16 MiB and a bit: more than one piece, window and write-back
	status, info := s.ask("PUT", "/v1/files"+at(path), data)
	if status != 200 || info["name"] != "a \ufffd+&%\n" || info["type"] != "file" || info["size"] != float64(len(data)) || info["mode"] != 420.0 || info["uid"] != float64(os.Getuid()) || info["link_target"] != nil {
		t.Errorf("got %d %v", status, info)
	}
	body, response := s.bytesOf(path)
	if body != data || response.Header.Get(lengthHeader) != strconv.Itoa(len(data)) {
		t.Errorf("%d bytes came back, length %s", len(body), response.Header.Get(lengthHeader))
	}
	for _, part := range []struct{ offset, length, want int }{{0, 3, 3}, {16 << 20, 100, 3}, {len(data), 5, 0}, {len(data) + 9, 5, 0}, {5, 0, 0}, {9, 1 << 20, 1 << 20}} {
		body, response := s.bytesOf(path, fmt.Sprintf("offset=%d&length=%d", part.offset, part.length))
		if want := data[min(part.offset, len(data)):min(part.offset+part.want, len(data))]; body != want || response.Header.Get(lengthHeader) != strconv.Itoa(part.want) {
			t.Errorf("%+v: got %.40q of %d", part, body, len(body))
		}
	}
	if body, response := s.bytesOf(path, "offset=7"); body != data[7:] || response.Header.Get(lengthHeader) != strconv.Itoa(len(data)-7) {
		t.Errorf("got %d bytes", len(body))
	}
}

func TestEmptyFile(t *testing.T) {
	s := newGuest(t).connect()
	path := t.TempDir() + "/empty"
	if status, info := s.ask("PUT", "/v1/files"+at(path), ""); status != 200 || info["size"] != 0.0 {
		t.Errorf("got %d %v", status, info)
	}
	if body, response := s.bytesOf(path); body != "" || response.Header.Get(lengthHeader) != "0" {
		t.Errorf("got %q, %v", body, response.Header)
	}
}

func TestFilesOfProcHaveContent(t *testing.T) {
	s := newGuest(t).connect()
	if body, _ := s.bytesOf("/proc/self/status"); !strings.HasPrefix(body, "Name:") || !strings.HasSuffix(body, "\n") {
		t.Errorf("got %q", body)
	}
	want := content(t, "/proc/version")
	if body, _ := s.bytesOf("/proc/version", "offset=6&length=7"); body != want[6:13] {
		t.Errorf("got %q", body)
	}
}

func TestAFileThatShrinksResetsTheStream(t *testing.T) {
	s := newGuest(t).connect()
	path := t.TempDir() + "/f"
	os.WriteFile(path, make([]byte, 32<<20), 0o644)
	response := s.start("GET", "/v1/files"+at(path), "")
	os.Truncate(path, 100)
	n, err := io.Copy(io.Discard, response.Body)
	if err == nil || n >= 32<<20 {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func TestAttributes(t *testing.T) {
	s := newGuest(t).connect()
	dir := t.TempDir()
	path := dir + "/f"
	is := func(mode uint32, uid uint32) {
		t.Helper()
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil || st.Mode&0o7777 != mode || st.Uid != uid {
			t.Errorf("%v: mode %o, uid %d", err, st.Mode, st.Uid)
		}
	}
	me := uint32(os.Getuid())
	s.ask("PUT", "/v1/files"+at(path, "mode=4751"), "x")
	is(0o4751, me)
	s.ask("PUT", "/v1/files"+at(path), "y")
	is(0o4751, me)
	s.ask("PUT", "/v1/files"+at(path, "mode=600", "user=me"), "z")
	is(0o600, me)
	if content(t, path) != "z" {
		t.Error("the content is old")
	}
	for _, mtime := range []int64{1234567890123456789, 0, -1} {
		var st syscall.Stat_t
		s.ask("PUT", "/v1/files"+at(path, fmt.Sprint("mtime_ns=", mtime)), "z")
		if err := syscall.Stat(path, &st); err != nil || st.Mtim.Nano() != mtime {
			t.Errorf("mtime_ns=%d made %d", mtime, st.Mtim.Nano())
		}
	}
	if os.Getuid() == 0 {
		s.ask("PUT", "/v1/files"+at(path, "user=7:8", "mode=2755"), "z")
		is(0o2755, 7)
		s.ask("PUT", "/v1/files"+at(path), "z")
		is(0o2755, 7)
	}
	for _, bad := range []string{"mode=8", "mode=10000", "mode=-1", "mode=rw", "parents=yes", "mtime_ns=x", "mtime_ns=1.5"} {
		s.refused("PUT", "/v1/files"+at(path, bad), "bad", 400, "bad_request")
	}
	s.refused("PUT", "/v1/files"+at(path, "user=nobody-here"), "bad", 422, "no_such_user")
	if content(t, path) != "z" {
		t.Error("a refused request has changed the file")
	}
	if names := entries(t, dir); len(names) != 1 {
		t.Errorf("left: %q", names)
	}
}

func TestParents(t *testing.T) {
	s := newGuest(t).connect()
	dir := t.TempDir()
	s.refused("PUT", "/v1/files"+at(dir+"/a/b/f"), "x", 404, "no_such_file")
	if status, info := s.ask("PUT", "/v1/files"+at(dir+"/a/b/f", "parents=1"), "x"); status != 200 || content(t, dir+"/a/b/f") != "x" {
		t.Errorf("got %d %v", status, info)
	}
	s.refused("PUT", "/v1/files"+at(dir+"/a/b/f/g", "parents=1"), "x", 409, "file_exists")
}

func TestLinksAreWrittenThrough(t *testing.T) {
	s := newGuest(t).connect()
	dir := t.TempDir()
	os.Mkdir(dir+"/sub", 0o755)
	os.WriteFile(dir+"/sub/real", []byte("old"), 0o640)
	os.Symlink("sub/two", dir+"/one")
	os.Symlink(dir+"/sub/../sub/real", dir+"/sub/two")
	os.Symlink("sub/new", dir+"/dangling")
	os.Symlink("loop", dir+"/loop")
	os.Symlink("sub", dir+"/todir")
	for link, file := range map[string]string{"one": "sub/real", "dangling": "sub/new"} {
		if status, info := s.ask("PUT", "/v1/files"+at(dir+"/"+link), "through "+link); status != 200 || info["name"] != link || info["type"] != "file" {
			t.Errorf("got %d %v", status, info)
		}
		if got := content(t, dir+"/"+file); got != "through "+link {
			t.Errorf("%s: %q", file, got)
		}
		if info, _ := os.Lstat(dir + "/" + link); info.Mode()&os.ModeSymlink == 0 {
			t.Errorf("%s is no link any more", link)
		}
	}
	if info, _ := os.Stat(dir + "/one"); info.Mode() != 0o640 {
		t.Errorf("mode %v", info.Mode())
	}
	s.refused("PUT", "/v1/files"+at(dir+"/loop"), "x", 500, "internal")
	s.refused("PUT", "/v1/files"+at(dir+"/todir"), "x", 409, "not_a_file")
}

// A pipe without a writer, or a device, must not hold the agent up or be touched.
func TestOnlyRegularFiles(t *testing.T) {
	s := newGuest(t).connect()
	dir := t.TempDir()
	if err := syscall.Mkfifo(dir+"/fifo", 0o644); err != nil {
		t.Fatal(err)
	}
	os.Symlink("fifo", dir+"/link")
	for _, path := range []string{dir + "/fifo", dir + "/link", "/dev/zero", dir, "/", dir + "/"} {
		s.refused("GET", "/v1/files"+at(path), "", 409, "not_a_file")
		s.refused("PUT", "/v1/files"+at(path), "x", 409, "not_a_file")
	}
	if names := entries(t, dir); len(names) != 2 {
		t.Errorf("left: %q", names)
	}
}

func TestAbortedWriteLeavesNothing(t *testing.T) {
	g := newGuest(t)
	dir := t.TempDir()
	os.WriteFile(dir+"/old", []byte("old"), 0o644)
	for how, abort := range map[string]func(*session, context.CancelFunc){
		"RST_STREAM":         func(_ *session, cancel context.CancelFunc) { cancel() },
		"the end of session": func(s *session, _ context.CancelFunc) { s.conn.Conn.Close() },
	} {
		s := g.connect()
		ctx, cancel := context.WithCancel(context.Background())
		r, w := io.Pipe()
		request, _ := http.NewRequestWithContext(ctx, "PUT", "http://guest/v1/files"+at(dir+"/old"), r)
		go func() {
			if response, err := s.Do(request); err == nil {
				response.Body.Close()
			}
		}()
		w.Write(make([]byte, 1<<20))
		eventually(t, "the temporary file is there", func() bool { return len(entries(t, dir)) == 2 })
		abort(s, cancel)
		eventually(t, how+": the temporary file has gone", func() bool { return len(entries(t, dir)) == 1 })
		if content(t, dir+"/old") != "old" {
			t.Errorf("%s: the file has changed", how)
		}
		cancel()
		w.Close()
		s.conn.Conn.Close()
	}
}

func TestAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip("cannot mount: ", err)
	}
	defer syscall.Unmount(dir, 0)
	s := newGuest(t).connect()
	s.refused("PUT", "/v1/files"+at(dir+"/f"), strings.Repeat("x", 3<<20), 507, "guest_disk_full")
	if names := entries(t, dir); len(names) != 0 {
		t.Errorf("left: %q", names)
	}
}

func TestStat(t *testing.T) {
	s := newGuest(t).connect()
	dir := t.TempDir()
	os.WriteFile(dir+"/f", []byte("12345"), 0o604)
	mtime := time.Unix(1700000000, 123456789)
	os.Chtimes(dir+"/f", mtime, mtime)
	os.Symlink("f", dir+"/link")
	status, info := s.ask("GET", "/v1/files/stat"+at(dir+"/link"), "")
	if status != 200 || info["name"] != "link" || info["type"] != "file" || info["size"] != 5.0 || info["mode"] != float64(0o604) || info["user"] != "me" || info["group"] != nil || info["link_target"] != nil {
		t.Errorf("got %d %v", status, info)
	}
	response := s.start("GET", "/v1/files/stat"+at(dir+"/f"), "")
	var exact struct {
		MtimeNS int64 `json:"mtime_ns"`
	}
	if json.NewDecoder(response.Body).Decode(&exact); exact.MtimeNS != mtime.UnixNano() {
		t.Errorf("mtime %d", exact.MtimeNS)
	}
	response.Body.Close()
	if _, info := s.ask("GET", "/v1/files/stat"+at(dir+"/link", "follow=0"), ""); info["type"] != "symlink" || info["link_target"] != "f" {
		t.Errorf("got %v", info)
	}
	for path, kind := range map[string]string{"/dev/null": "char_device", "/": "directory"} {
		if _, info := s.ask("GET", "/v1/files/stat"+at(path), ""); info["type"] != kind || info["name"] != path[strings.LastIndex(path[:len(path)-1]+"x", "/")+1:] && path != "/" {
			t.Errorf("got %v", info)
		}
	}
	s.refused("GET", "/v1/files/stat"+at(dir+"/none"), "", 404, "no_such_file")
	s.refused("GET", "/v1/files/stat"+at(dir+"/f/x"), "", 409, "not_a_directory")
	s.refused("GET", "/v1/files/stat"+at(dir+"/"+strings.Repeat("x", 256)), "", 400, "bad_request")
	for _, query := range []string{"", "?path=", "?path=relative", "?path=%2Fa%00b", "?path=%zz", "?path=/&follow=2"} {
		s.refused("GET", "/v1/files/stat"+query, "", 400, "bad_request")
	}
}

// lines reads the objects of an ndjson answer.
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
	s.refused("POST", "/v1/files/mkdir", `{"path": "x"}`, 400, "bad_request")
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
	s.refused("POST", "/v1/files/rename", rename("/f", "/empty"), 409, "not_a_file")
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
	s.refused("DELETE", "/v1/files"+at("/", "recursive=1"), "", 500, "internal")
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
	if message := answer["error"].(map[string]any)["message"].(string); status != 500 || message != dir+"/d/mounted: device or resource busy" {
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
	s.refused("GET", "/v1/files/tar?path=/&path=x", "", 400, "bad_request")
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
