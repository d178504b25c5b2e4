package server

import (
	"archive/tar"
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

// at returns the query of a request for path, with further parameters.
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
	data := strings.Repeat("0123456789abcdef", 1<<20) + "end" // 16 MiB and more: larger than one piece, window or write-back range
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

func TestFilesOfSysHaveLessThanTheySay(t *testing.T) {
	const path = "/sys/kernel/mm/transparent_hugepage/enabled"
	if st, err := os.Stat(path); err != nil || st.Size() != 4096 {
		t.Skip("this kernel has no such file")
	}
	if body, _ := newGuest(t).connect().bytesOf(path); body != content(t, path) {
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
	s.refused("PUT", "/v1/files"+at(dir+"/loop"), "x", 400, "bad_request")
	s.refused("PUT", "/v1/files"+at(dir+"/todir"), "x", 409, "is_a_directory")
}

// A pipe without a writer and a device neither block the agent nor are opened.
func TestOnlyRegularFiles(t *testing.T) {
	s := newGuest(t).connect()
	dir := t.TempDir()
	if err := syscall.Mkfifo(dir+"/fifo", 0o644); err != nil {
		t.Fatal(err)
	}
	os.Symlink("fifo", dir+"/link")
	for _, path := range []string{dir + "/fifo", dir + "/link", "/dev/zero"} {
		s.refused("GET", "/v1/files"+at(path), "", 409, "not_a_file")
		s.refused("PUT", "/v1/files"+at(path), "x", 409, "not_a_file")
	}
	for _, path := range []string{dir, "/", dir + "/"} {
		s.refused("GET", "/v1/files"+at(path), "", 409, "is_a_directory")
		s.refused("PUT", "/v1/files"+at(path), "x", 409, "is_a_directory")
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

func TestPowerOffLeavesNothingOfUploads(t *testing.T) {
	g := newGuest(t)
	s := g.connect()
	dir := t.TempDir()
	var tarred bytes.Buffer
	tar.NewWriter(&tarred).WriteHeader(&tar.Header{Name: "f", Mode: 0o644, Size: 1 << 30})
	var bodies []*io.PipeWriter
	answers := make(chan int, 2)
	for url, first := range map[string][]byte{
		"http://guest/v1/files" + at(dir+"/f"):                 make([]byte, 1<<20),
		"http://guest/v1/files/tar" + at(dir+"/d", "create=1"): append(tarred.Bytes(), make([]byte, 1<<20)...),
	} {
		r, w := io.Pipe()
		request, _ := http.NewRequest("PUT", url, r)
		go func() {
			response, err := s.Do(request)
			if err != nil {
				answers <- 0
				return
			}
			response.Body.Close()
			answers <- response.StatusCode
		}()
		w.Write(first)
		bodies = append(bodies, w)
	}
	eventually(t, "both are under way", func() bool { return len(entries(t, dir)) == 2 })
	s.ask("POST", "/v1/poweroff", "{}")
	<-g.off
	if left := entries(t, dir); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
	for range 2 {
		if status := <-answers; status != 503 {
			t.Errorf("got %d", status)
		}
	}
	s.refused("PUT", "/v1/files"+at(dir+"/f"), "x", 503, "powering_off")
	for _, body := range bodies {
		body.Close()
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
	for _, query := range []string{"", "?path=", "?path=%2Fa%00b", "?path=%zz", "?path=/&follow=2"} {
		s.refused("GET", "/v1/files/stat"+query, "", 400, "bad_request")
	}
}
