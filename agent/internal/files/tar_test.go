package files

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"squib/agent/internal/process"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// describe says all of a tree that an archive keeps, one line a file.
func describe(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	first := map[inode]string{}
	must(t, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		var st syscall.Stat_t
		must(t, err)
		must(t, syscall.Lstat(path, &st))
		name := strings.TrimPrefix(path, root)
		fmt.Fprintf(&b, "%q %o %d:%d %d.%09d", name, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & syscall.S_IFMT {
		case syscall.S_IFREG:
			content, err := os.ReadFile(path)
			must(t, err)
			fmt.Fprintf(&b, " %.20q %d", content, len(content))
			if st.Nlink > 1 {
				if first[inodeOf(&st)] == "" {
					first[inodeOf(&st)] = name
				}
				fmt.Fprintf(&b, " %d names, first %q", st.Nlink, first[inodeOf(&st)])
			}
		case syscall.S_IFLNK:
			target, err := os.Readlink(path)
			must(t, err)
			fmt.Fprintf(&b, " -> %q", target)
		case syscall.S_IFCHR, syscall.S_IFBLK:
			fmt.Fprintf(&b, " %d,%d", major(st.Rdev), minor(st.Rdev))
		}
		b.WriteByte('\n')
		return nil
	}))
	return b.String()
}

func pack(t *testing.T, paths ...string) []byte {
	t.Helper()
	packer, err := NewPacker(paths, Names{})
	must(t, err)
	var b bytes.Buffer
	must(t, packer.Pack(&b))
	return b.Bytes()
}

func unpack(t *testing.T, dir string, archive []byte) Unpacked {
	t.Helper()
	count, err := Unpack(dir, bytes.NewReader(archive), nil, os.Getuid() == 0)
	must(t, err)
	return count
}

func unpackNew(t *testing.T, dir string, archive []byte) {
	t.Helper()
	_, err := UnpackNew(dir, bytes.NewReader(archive), nil, os.Getuid() == 0)
	must(t, err)
}

func chmod(t *testing.T, path string, mode uint32) {
	t.Helper()
	must(t, syscall.Chmod(path, mode))
}

func TestRoundTrip(t *testing.T) {
	dir := t.TempDir()
	tree := dir + "/tree"
	must(t, os.MkdirAll(tree+"/sub/deep", 0o755))
	for name, content := range map[string]string{
		"plain": "text", "empty": "", "big": strings.Repeat("0123456789abcdef", 40_000), "exact": strings.Repeat("x", bufferSize), "setuid": "#!", "sticky": "s",
		"a b\n\t": "odd", "\xff\xfe": "bytes", "caf\xc3\xa9": "utf-8", strings.Repeat("n", 255): "long", "sub/" + strings.Repeat("m", 250): "longer", "sub/deep/f": "f",
		"-rf": "dash", "back\\slash": "b", "trailing ": "t", "=": "eq",
	} {
		must(t, os.WriteFile(tree+"/"+name, []byte(content), 0o644))
	}
	chmod(t, tree+"/setuid", 0o4755)
	chmod(t, tree+"/sticky", 0o1600)
	chmod(t, tree+"/sub", 0o2711)
	if os.Getuid() == 0 { // others cannot write into it
		chmod(t, tree+"/sub/deep", 0o500)
	}
	must(t, os.Link(tree+"/plain", tree+"/sub/hard"))
	must(t, os.Link(tree+"/\xff\xfe", tree+"/hard\xff"))
	must(t, os.Symlink("../plain", tree+"/sub/link"))
	must(t, os.Symlink("/nowhere/\xff\n"+strings.Repeat("l", 300), tree+"/dangling"))
	must(t, syscall.Mkfifo(tree+"/fifo", 0o622))
	if os.Getuid() == 0 {
		must(t, os.Chown(tree+"/plain", 12345, 54321))
		must(t, os.Lchown(tree+"/sub/link", 3_000_000_000, 7))
		if err := syscall.Mknod(tree+"/device", syscall.S_IFBLK|0o600, deviceNumber(259, 70_000)); err != nil {
			t.Log("without devices: ", err)
		}
	}
	for i, name := range []string{"plain", "sub/link", "sub/deep/f", "sub/deep", "sub", ""} {
		must(t, setTimes(atFdCwd, tree+"/"+name, syscall.Timespec{Sec: int64(1_000_000_000 - 300_000_000*i), Nsec: int64(123_456_789 + i)}))
	}
	want := describe(t, tree)

	archive := pack(t, tree)
	count := unpack(t, mkdir1(t, dir+"/out"), archive)
	if got := describe(t, dir+"/out/tree"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if entries := int64(strings.Count(want, "\n")); count.Entries != entries || count.Bytes < 640_000+bufferSize {
		t.Errorf("got %+v, want %d entries", count, entries)
	}
	// Once more over what is there, and as contents.
	unpack(t, dir+"/out", archive)
	unpackNew(t, dir+"/contents", pack(t, tree+"/."))
	unpackNew(t, dir+"/slash", pack(t, tree+"/"))
	for _, again := range []string{"/out/tree", "/contents", "/slash"} {
		if got := describe(t, dir+again); got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", again, got, want)
		}
	}
}

func mkdir1(t *testing.T, path string) string {
	t.Helper()
	must(t, os.Mkdir(path, 0o755))
	return path
}

func members(t *testing.T, archive []byte) (names []string, problem string) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		header, err := r.Next()
		if err == io.EOF {
			return names, problem
		}
		must(t, err)
		if header.Typeflag == tar.TypeXGlobalHeader {
			problem = header.PAXRecords["SQUIB.error"]
		} else {
			names = append(names, header.Name)
		}
	}
}

func TestPackNamesItsMembers(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/a/b", 0o755))
	must(t, os.WriteFile(dir+"/a/b/f", []byte("x"), 0o644))
	must(t, os.Symlink("a/b", dir+"/link"))
	for want, paths := range map[string][]string{
		"a/ a/b/ a/b/f":       {dir + "/a"},
		"b/ b/f f":            {dir + "/a/b", dir + "/a/b/f"},
		"./ b/ b/f":           {dir + "/a/."},
		"./ f":                {dir + "/a/b/"},
		"link/ link/f ./ f f": {dir + "/link", dir + "/link/", dir + "/a/b/f"},
	} {
		if names, problem := members(t, pack(t, paths...)); strings.Join(names, " ") != want || problem != "" {
			t.Errorf("%q: got %q, %q", paths, names, problem)
		}
	}
	for path, code := range map[string]process.Code{dir + "/none": NoSuchFile, dir + "/a/..": process.BadRequest, dir + "/a/b/f/": NotADirectory} {
		if _, err := NewPacker([]string{dir, path}, Names{}); process.CodeOf(err) != code {
			t.Errorf("%s: got %v", path, err)
		}
	}
}

func TestPackLeavesOutSockets(t *testing.T) {
	dir := t.TempDir()
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	must(t, err)
	defer syscall.Close(fd)
	must(t, syscall.Bind(fd, &syscall.SockaddrUnix{Name: dir + "/s"}))
	if names, problem := members(t, pack(t, dir+"/")); len(names) != 1 || problem != "" {
		t.Errorf("got %q, %q", names, problem)
	}
}

// Files that have no size but do not end, or less than they say, must neither hang nor break an archive.
func TestPackKernelFiles(t *testing.T) {
	const online = "/sys/devices/system/cpu/online"
	if names, problem := members(t, pack(t, "/proc/sys/kernel/random", "/proc/version")); len(names) < 5 || problem != "" {
		t.Errorf("got %q, %q", names, problem)
	}
	want, err := os.ReadFile(online)
	must(t, err)
	dir := t.TempDir()
	unpack(t, dir, pack(t, online))
	if content, err := os.ReadFile(dir + "/online"); err != nil || string(content) != string(want) {
		t.Errorf("got %q, %v, want %q", content, err, want)
	}
}

func TestPackDoesNotEnterProc(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/d/proc", 0o755))
	if err := syscall.Mount("proc", dir+"/d/proc", "proc", 0, ""); err != nil {
		t.Skip("cannot mount: ", err)
	}
	defer syscall.Unmount(dir+"/d/proc", 0)
	if names, problem := members(t, pack(t, dir+"/d")); strings.Join(names, " ") != "d/ d/proc/" || problem != "" {
		t.Errorf("got %q, %q", names, problem)
	}
	if names, problem := members(t, pack(t, dir+"/d/proc/sys/kernel")); !slices.Contains(names, "kernel/random/uuid") || problem != "" {
		t.Errorf("asked for by name: got %q, %q", names, problem)
	}
}

// shrinking cuts a file once the first piece of an archive is written.
type shrinking struct {
	bytes.Buffer
	path string
}

func (s *shrinking) Write(b []byte) (int, error) {
	os.Truncate(s.path, 1)
	return s.Buffer.Write(b)
}

func TestPackSaysWhatWentWrong(t *testing.T) {
	dir := t.TempDir()
	path := mkdir1(t, dir+"/d") + "/\xffbig"
	must(t, os.WriteFile(path, bytes.Repeat([]byte("x"), 8*bufferSize), 0o644))
	packer, err := NewPacker([]string{dir + "/d", dir + "/d"}, Names{})
	must(t, err)
	out := &shrinking{path: path}
	must(t, packer.Pack(out))
	names, problem := members(t, out.Bytes())
	if len(names) != 2 || problem != fmt.Sprintf("%q: the file was cut while it was read", path) {
		t.Errorf("got %q, %q", names, problem)
	}
	if _, err := Unpack(dir, bytes.NewReader(out.Bytes()), nil, false); process.CodeOf(err) != process.BadRequest || !strings.Contains(err.Error(), problem) {
		t.Errorf("got %v", err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("the host has gone") }

func TestPackEndsWithItsReader(t *testing.T) {
	packer, err := NewPacker([]string{"/usr"}, Names{})
	must(t, err)
	if err := packer.Pack(failing{}); err == nil || err.Error() != "the host has gone" {
		t.Errorf("got %v", err)
	}
}

// The fixtures were written by Python's tarfile.
func TestUnpackPython(t *testing.T) {
	for _, format := range []string{"pax", "gnu"} {
		archive, err := os.ReadFile("testdata/" + format + ".tar")
		must(t, err)
		dir := t.TempDir()
		if count := unpack(t, dir, archive); count != (Unpacked{7, 15}) {
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

// member is a line of an archive; what is not given has a default.
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
		_, err := Unpack(dir, bytes.NewReader(archiveOf(t, archive...)), nil, false)
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
	_, err := Unpack(dir, bytes.NewReader(archiveOf(t, member{name: "real", content: "x"})), nil, false)
	if process.CodeOf(err) != NotAFile {
		t.Errorf("a file in place of a directory: %v", err)
	}
	_, err = Unpack(dir, bytes.NewReader(archiveOf(t, member{name: "file/f", content: "x"})), nil, false)
	if process.CodeOf(err) != NotADirectory {
		t.Errorf("below a file: %v", err)
	}
}

// A directory that the archive comes back to has its time in the end all the same.
func TestUnpackNewIsAllOrNothing(t *testing.T) {
	dir := t.TempDir()
	whole := archiveOf(t, member{name: "./", kind: tar.TypeDir, mode: 0o750}, member{name: "a/b/f", content: "content"})
	count, err := UnpackNew(dir+"/new/", bytes.NewReader(whole), nil, false)
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
		if _, err := UnpackNew(dir+path, bytes.NewReader(whole), nil, false); !errors.As(err, &problem) || problem.Code != want {
			t.Errorf("%s: %v", path, err)
		}
	}
	for name, broken := range map[string]io.Reader{
		"cut":     bytes.NewReader(whole[:len(whole)-1024-600]),
		"aborted": io.MultiReader(bytes.NewReader(whole[:1600]), failingReader{}),
		"refused": bytes.NewReader(archiveOf(t, member{name: "a/f", content: "x"}, member{name: "../g", content: "x"})),
	} {
		if _, err := UnpackNew(dir+"/other", broken, nil, false); err == nil {
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
			member{name: "p", kind: tar.TypeFifo}, member{name: "null", kind: tar.TypeChar})), owner, what == "keep")
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
		_, err := Unpack(dir, bytes.NewReader(archive), nil, false)
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
	if count, err := Unpack(t.TempDir(), bytes.NewReader(nil), nil, false); err != nil || count.Entries != 0 {
		t.Errorf("nothing: %v, %+v", err, count)
	}
	if _, err := Unpack("/none", bytes.NewReader(whole), nil, false); process.CodeOf(err) != NoSuchFile {
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
	Unpack(dir, bytes.NewReader(archiveOf(t, member{name: "a/b/../f"})), nil, false)
	pack(t, dir)
	must(t, Remove(dir+"/a", true))
	if after := count(); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
