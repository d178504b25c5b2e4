package files

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"syscall"
	"testing"

	"squib/agent/internal/process"
)

func TestUnpackNewIsAllOrNothing(t *testing.T) {
	dir := t.TempDir()
	whole := archiveOf(t, member{name: "./", kind: tar.TypeDir, mode: 0o750}, member{name: "a/b/f", content: "content"})
	count, err := UnpackNew(dir+"/new/", bytes.NewReader(whole), nil, false, TemporaryName())
	if err != nil || count.Entries != 2 || count.Bytes != 7 {
		t.Errorf("%+v, %v", count, err)
	}
	if content, err := os.ReadFile(dir + "/new/a/b/f"); string(content) != "content" {
		t.Errorf("%q, %v", content, err)
	}
	var st syscall.Stat_t
	if must(t, syscall.Stat(dir+"/new", &st)); st.Mode&0o7777 != 0o750 {
		t.Errorf("the directory has mode %o", st.Mode)
	}
	must(t, os.Symlink("nowhere", dir+"/link"))
	for path, want := range map[string]process.Code{
		"/new": FileExists, "/link": FileExists, "/.": FileExists, "/nosuch/new": NoSuchFile, "/new/a/b/f/g": NotADirectory,
	} {
		var problem *process.Error
		if _, err := UnpackNew(dir+path, bytes.NewReader(whole), nil, false, TemporaryName()); !errors.As(err, &problem) || problem.Code != want {
			t.Errorf("%s: %v", path, err)
		}
	}
	for name, broken := range map[string]io.Reader{
		"cut":     bytes.NewReader(whole[:len(whole)-1024-600]),
		"aborted": io.MultiReader(bytes.NewReader(whole[:1600]), failingReader{}),
		"refused": bytes.NewReader(archiveOf(t, member{name: "a/f", content: "x"}, member{name: "../g", content: "x"})),
	} {
		if _, err := UnpackNew(dir+"/other", broken, nil, false, TemporaryName()); err == nil {
			t.Errorf("%s: it was unpacked", name)
		}
		if left, _ := os.ReadDir(dir); len(left) != 2 {
			t.Errorf("%s: left are %v", name, left)
		}
	}
}

func TestUnpackLeavesTheDirectoryThatWasThere(t *testing.T) {
	dir := t.TempDir()
	chmod(t, dir, 0o1777)
	must(t, setTimes(atFdCwd, dir, syscall.Timespec{Sec: 5}))
	unpack(t, dir, archiveOf(t, member{name: "./", kind: tar.TypeDir, mode: 0o700}))
	var st syscall.Stat_t
	if must(t, syscall.Stat(dir, &st)); st.Mode&0o7777 != 0o1777 || st.Uid != uint32(os.Getuid()) || st.Mtim.Sec != 5 {
		t.Errorf("mode %o, owner %d, time %d", st.Mode, st.Uid, st.Mtim.Sec)
	}
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errors.New("the host has gone") }
