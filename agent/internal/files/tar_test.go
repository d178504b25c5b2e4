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

	"squib/agent/internal/process"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// describe returns everything that an archive keeps of a tree, one line per file.
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
	packer, err := NewPacker(paths, Names{}, true)
	must(t, err)
	var b bytes.Buffer
	must(t, packer.Pack(&b))
	return b.Bytes()
}

func unpack(t *testing.T, dir string, archive []byte) UnpackResult {
	t.Helper()
	count, err := Unpack(dir, bytes.NewReader(archive), nil, os.Getuid() == 0, TemporaryName())
	must(t, err)
	return count
}

func unpackNew(t *testing.T, dir string, archive []byte) {
	t.Helper()
	_, err := UnpackNew(dir, bytes.NewReader(archive), nil, os.Getuid() == 0, TemporaryName())
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
	if os.Getuid() == 0 { // other users cannot write into it
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
	// Unpack again over the existing files, and as contents.
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
		if _, err := NewPacker([]string{dir, path}, Names{}, true); process.CodeOf(err) != code {
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

// Files that are endless but report no size, or that are shorter than reported, neither block nor
// break an archive.
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

// shrinking truncates a file once the first piece of an archive was written.
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
	packer, err := NewPacker([]string{dir + "/d", dir + "/d"}, Names{}, true)
	must(t, err)
	out := &shrinking{path: path}
	must(t, packer.Pack(out))
	names, problem := members(t, out.Bytes())
	if len(names) != 2 || problem != fmt.Sprintf("%q: truncated while being read", path) {
		t.Errorf("got %q, %q", names, problem)
	}
	if _, err := Unpack(dir, bytes.NewReader(out.Bytes()), nil, false, TemporaryName()); process.CodeOf(err) != process.BadRequest || !strings.Contains(err.Error(), problem) {
		t.Errorf("got %v", err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("the host has gone") }

func TestPackEndsWithItsReader(t *testing.T) {
	packer, err := NewPacker([]string{"/usr"}, Names{}, true)
	must(t, err)
	if err := packer.Pack(failing{}); err == nil || err.Error() != "the host has gone" {
		t.Errorf("got %v", err)
	}
}
