package files

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"squib/agent/internal/process"
)

// writtenByPython holds archives made by Python's tarfile, compressed and in base64.
var writtenByPython = map[string]string{
	"pax": "H4sIAAAAAAACA+2ZTU7DMBBGs84pfILEHtsxm6rACjYIsWMZmkAr+oOSVCr34SbcC3BAVUVaiiphJzTf2zSKKkWtPe/LeKI4ik+v09VFnmZ5ETiBf/HTJ+dkNtf1fcFJqICtAg8syyot7OODfkKSzarJLB8Is/7/I9JhAPpBFrt/Rr2pjN5T//ZaKE3KGK4+7ydEOmAa9e+cqAv+N2rb/wn878X/go2zYjROizKvBueXV2c3t6FI2FNajQdZPErv38MQIXHE/rdLPHS7lPV+SdQ+/+uG/+02s/XPUf/OuXuu8hJl0Fs6kf9qR/5L5L8PhFxH/esLcr6P+T/00v/tz/+k2f9Jksh/Lz9/Nk2XFeoA+d9e/kst0f+31v/T+gVgfiTgNeag/He/IL/nv/qe/1KSRv/vheli/oAqQP63mf+iMQuq859j/usp/3ec/xNn08n8ETOAPuS/Xfqs7f6/Mf8V9fcDJnwMJzD/7cD8N9nyP3H4vzX/i5ON/2H/I/d/ubh3fP53sP+tEIwJGLm3P/zfhfM/2n7/F/B/i/5P1CYA3joJEumv/F+fANWL3SH/kyJB1v9DD/S8/gEAAAAAAAAAAAAAAAAAAAAAAADw//kAciU0GwBQAAA=",
	"gnu": "H4sIAAAAAAACA+2YTU7DMBCFZ80pfILGHv/Mlj25RGgooIZUatJF78NNuBfFZIHUgIqEZDfC79s4yi56+Wae3FaUHB0Rr6czMj+nZ+M8OxHtpvfBBE/KUwYOw9jslaJCaat1szndJM8/uEv5+1n+wi6Q0sg/OffH8WEgUK7/b6855v9l/8N8/ou18D/L5790zWGEB6WyqlbVbb3rH+vnfpvQ/x+8//LfGnvWBeP+F8+kavifYf73/wS4vNT8f9//7nz/W8sG/T8LXRz9sKBk/5+afXvt/j+7/zHasiNlclxOFL//h91mXFz+xgopTp9+8fkvof8zy/f+70ndYf8n532RYC/nm/+fDbBLJ/9f5r8Yp2P/5xy/WuH+AwAAAAAAAMrhA9orBT0AKAAA",
}

func unzip(t *testing.T, text string) []byte {
	t.Helper()
	zipped, err := gzip.NewReader(base64.NewDecoder(base64.StdEncoding, strings.NewReader(text)))
	must(t, err)
	content, err := io.ReadAll(zipped)
	must(t, err)
	return content
}

func TestUnpackPython(t *testing.T) {
	for _, format := range []string{"pax", "gnu"} {
		archive := unzip(t, writtenByPython[format])
		dir := t.TempDir()
		if count := unpack(t, dir, archive); count != (UnpackResult{7, 15}) {
			t.Errorf("%s: %+v", format, count)
		}
		for name, want := range map[string]string{"caf\xff\n": "bytes", "ä": "umlaut", strings.Repeat("n", 200): "long", "hard": "bytes", "soft": "bytes"} {
			if content, err := os.ReadFile(dir + "/d/" + name); err != nil || string(content) != want {
				t.Errorf("%s: %q: %q, %v", format, name, content, err)
			}
		}
		if target, err := os.Readlink(dir + "/d/longlink"); err != nil || target != strings.Repeat("\xfe", 150) {
			t.Errorf("%s: %q, %v", format, target, err)
		}
		info, err := os.Stat(dir + "/d")
		must(t, err)
		if want := map[string]int64{"pax": 250, "gnu": 0}[format]; info.ModTime().UnixMilli() != 1_700_000_000_000+want || info.Mode() != os.ModeDir|0o750 {
			t.Errorf("%s: %v %v", format, info.Mode(), info.ModTime())
		}
	}
}

// member is a line of an archive; omitted fields have defaults.
type member struct {
	name, link, content string
	kind                byte
	mode, device        int64
}

func archiveOf(t *testing.T, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		if m.kind == 0 {
			m.kind = tar.TypeReg
		}
		if m.mode == 0 {
			m.mode = 0o644
		}
		must(t, w.WriteHeader(&tar.Header{
			Typeflag: m.kind, Name: m.name, Linkname: m.link, Size: int64(len(m.content)), Mode: m.mode, ModTime: time.Unix(1e9, 0), Uid: 7, Gid: 8, Devmajor: m.device,
		}))
		_, err := w.Write([]byte(m.content))
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func TestUnpackRefuses(t *testing.T) {
	outside := t.TempDir()
	must(t, os.WriteFile(outside+"/f", []byte("safe"), 0o644))
	for what, archive := range map[string][]member{
		"absolute":                 {{name: outside + "/f", content: "x"}},
		"absolute directory":       {{name: outside + "/d/", kind: tar.TypeDir}},
		"dots":                     {{name: "../f", content: "x"}},
		"inner dots":               {{name: "a/../../f", content: "x"}},
		"the root as a file":       {{name: ".", content: "x"}},
		"through its link":         {{name: "l", link: outside, kind: tar.TypeSymlink}, {name: "l/f", content: "x"}},
		"through its link, twice":  {{name: "m", link: ".", kind: tar.TypeSymlink}, {name: "d/l", link: outside, kind: tar.TypeSymlink}, {name: "m/d/l/f", content: "x"}},
		"directory below its link": {{name: "l", link: outside, kind: tar.TypeSymlink}, {name: "l/d/", kind: tar.TypeDir}},
		"hard link out":            {{name: "h", link: outside + "/f", kind: tar.TypeLink}},
		"hard link with dots":      {{name: "h", link: "../f", kind: tar.TypeLink}},
		"hard link through a link": {{name: "l", link: outside, kind: tar.TypeSymlink}, {name: "h", link: "l/f", kind: tar.TypeLink}},
		"hard link to nothing":     {{name: "h", link: "none", kind: tar.TypeLink}},
		"hard link to a directory": {{name: "d/", kind: tar.TypeDir}, {name: "h", link: "d", kind: tar.TypeLink}},
		"device out of range":      {{name: "x", kind: tar.TypeChar, device: 1 << 12}},
		"link to nothing":          {{name: "l", link: "", kind: tar.TypeSymlink}},
		"unknown type":             {{name: "x", kind: 'Q'}},
		"too deep":                 {{name: "deep/" + strings.Repeat("d/", 2000), kind: tar.TypeDir}},
		"name that is too long":    {{name: strings.Repeat("n", 256), content: "x"}},
	} {
		dir := t.TempDir()
		_, err := Unpack(dir, bytes.NewReader(archiveOf(t, archive...)), nil, false, TemporaryName())
		if process.CodeOf(err) != process.BadRequest {
			t.Errorf("%s: got %v", what, err)
		}
		for _, left := range []string{"/h", "/x"} {
			if _, err := os.Lstat(dir + left); err == nil {
				t.Errorf("%s: %s was made", what, left)
			}
		}
		if names, _ := filepath.Glob(dir + "/.squib-*"); len(names) > 0 {
			t.Errorf("%s: left %q", what, names)
		}
	}
	if content, _ := os.ReadFile(outside + "/f"); string(content) != "safe" {
		t.Errorf("the file outside is %q", content)
	}
	if list, _ := os.ReadDir(outside); len(list) != 1 {
		t.Errorf("outside: %v", list)
	}
}

func TestUnpackOverWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/real/keep", 0o700))
	must(t, os.Symlink("real", dir+"/link"))
	must(t, os.Symlink("nowhere", dir+"/dangling"))
	must(t, os.WriteFile(dir+"/file", []byte("old"), 0o600))
	must(t, os.WriteFile(dir+"/notadir", nil, 0o600))
	must(t, os.Link(dir+"/file", dir+"/other"))
	unpack(t, dir, archiveOf(t,
		member{name: "link/", kind: tar.TypeDir, mode: 0o751},
		member{name: "link/f", content: "through the image's link"},
		member{name: "file", content: "new"},
		member{name: "dangling", content: "a file now"},
		member{name: "notadir/", kind: tar.TypeDir, mode: 0o755},
		member{name: "notadir/f", content: "below"},
		member{name: "made/on/the/way", content: "x"},
	))
	for name, want := range map[string]string{"real/f": "through the image's link", "file": "new", "other": "old", "dangling": "a file now", "notadir/f": "below", "made/on/the/way": "x"} {
		if content, err := os.ReadFile(dir + "/" + name); err != nil || string(content) != want {
			t.Errorf("%s: %q, %v", name, content, err)
		}
	}
	if info, _ := os.Lstat(dir + "/link"); info.Mode()&os.ModeSymlink == 0 {
		t.Error("the link was replaced")
	}
	if info, _ := os.Stat(dir + "/real"); info.Mode().Perm() != 0o751 || info.ModTime().Unix() != 1e9 {
		t.Errorf("the directory: %v %v", info.Mode(), info.ModTime())
	}
	if _, err := os.Stat(dir + "/real/keep"); err != nil {
		t.Error(err)
	}
	_, err := Unpack(dir, bytes.NewReader(archiveOf(t, member{name: "real", content: "x"})), nil, false, TemporaryName())
	if process.CodeOf(err) != IsADirectory {
		t.Errorf("a file in place of a directory: %v", err)
	}
	_, err = Unpack(dir, bytes.NewReader(archiveOf(t, member{name: "file/f", content: "x"})), nil, false, TemporaryName())
	if process.CodeOf(err) != NotADirectory {
		t.Errorf("below a file: %v", err)
	}
}

// A directory keeps its time when the archive returns to it later.
func TestUnpackOutOfOrder(t *testing.T) {
	dir := t.TempDir() + "/new"
	unpackNew(t, dir, archiveOf(t,
		member{name: "a/", kind: tar.TypeDir, mode: 0o700}, member{name: "b/", kind: tar.TypeDir, mode: 0o755},
		member{name: "a/f", content: "x"}, member{name: "b/f", content: "x"}, member{name: "a/g", content: "x"}, member{name: "./", kind: tar.TypeDir, mode: 0o755},
	))
	for _, name := range []string{"/a", "/b", ""} {
		if info, err := os.Stat(dir + name); err != nil || info.ModTime().Unix() != 1e9 {
			t.Errorf("%q: %v, %v", name, err, info.ModTime())
		}
	}
}

func TestUnpackOwners(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root gives files away")
	}
	for what, want := range map[string][2]uint32{"root": {0, 0}, "user": {1234, 4321}, "keep": {7, 8}} {
		dir := t.TempDir()
		var owner *Owner
		if what == "user" {
			owner = &Owner{1234, 4321}
		}
		_, err := Unpack(dir, bytes.NewReader(archiveOf(t,
			member{name: "d/", kind: tar.TypeDir, mode: 0o755}, member{name: "d/f", content: "x", mode: 0o4755}, member{name: "l", link: "d", kind: tar.TypeSymlink},
			member{name: "p", kind: tar.TypeFifo}, member{name: "null", kind: tar.TypeChar})), owner, what == "keep", TemporaryName())
		must(t, err)
		for _, name := range []string{"d", "d/f", "l", "p", "null"} {
			var st syscall.Stat_t
			must(t, syscall.Lstat(dir+"/"+name, &st))
			if st.Uid != want[0] || st.Gid != want[1] {
				t.Errorf("%s: %s belongs to %d:%d", what, name, st.Uid, st.Gid)
			}
			if name == "d/f" && st.Mode&0o7777 != 0o4755 {
				t.Errorf("%s: mode %o", what, st.Mode)
			}
		}
	}
}

func TestUnpackBrokenArchives(t *testing.T) {
	whole := archiveOf(t, member{name: "first", content: "1"}, member{name: "second", content: strings.Repeat("2", 5000)})
	for what, archive := range map[string][]byte{"noise": bytes.Repeat([]byte("noise"), 500), "cut in a file": whole[:3000], "cut in a header": whole[:1224]} {
		dir := t.TempDir()
		_, err := Unpack(dir, bytes.NewReader(archive), nil, false, TemporaryName())
		if process.CodeOf(err) != process.BadRequest {
			t.Errorf("%s: got %v", what, err)
		}
		if names, _ := filepath.Glob(dir + "/*"); len(names) > 1 {
			t.Errorf("%s: left %q", what, names)
		}
		if names, _ := filepath.Glob(dir + "/.squib-*"); len(names) > 0 {
			t.Errorf("%s: left %q", what, names)
		}
	}
	if count, err := Unpack(t.TempDir(), bytes.NewReader(nil), nil, false, TemporaryName()); err != nil || count.Entries != 0 {
		t.Errorf("nothing: %v, %+v", err, count)
	}
	if _, err := Unpack("/none", bytes.NewReader(whole), nil, false, TemporaryName()); process.CodeOf(err) != NoSuchFile {
		t.Errorf("got %v", err)
	}
}

func TestUnpackClosesWhatItOpens(t *testing.T) {
	count := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(list)
	}
	dir := t.TempDir()
	before := count()
	unpack(t, dir, archiveOf(t, member{name: "a/b/c/f", content: "x"}, member{name: "a/d/e/f", content: "x"}, member{name: "a/l", link: "a/b/c/f", kind: tar.TypeLink}))
	Unpack(dir, bytes.NewReader(archiveOf(t, member{name: "a/b/../f"})), nil, false, TemporaryName())
	pack(t, dir)
	must(t, Remove(dir+"/a", true))
	if after := count(); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
