package identity

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
)

const localhost = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"

func TestHosts(t *testing.T) {
	for name, c := range map[string]struct{ old, want string }{
		"none":                       {"", localhost + "127.0.1.1 vm # squib\n"},
		"an image's":                 {"127.0.0.1\tlocalhost # mine\n10.0.0.1 x\n", "127.0.0.1\tlocalhost # mine\n10.0.0.1 x\n127.0.1.1 vm # squib\n"},
		"ours, of an older name":     {"127.0.0.1 a localhost\n127.0.1.1 old # squib\n1.1.1.1 b\n", "127.0.0.1 a localhost\n1.1.1.1 b\n127.0.1.1 vm # squib\n"},
		"localhost only in a remark": {"# localhost\nlocalhost x", "# localhost\nlocalhost x\n" + localhost + "127.0.1.1 vm # squib\n"},
	} {
		if got := hosts(c.old, "vm"); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
		if again := hosts(c.want, "vm"); again != c.want {
			t.Errorf("%s: a second time: %q", name, again)
		}
	}
}

func TestFilesAreReplacedAndLinksNotFollowed(t *testing.T) {
	root := t.TempDir()
	g := Guest{root}
	victim := root + "/victim"
	os.WriteFile(victim, []byte("untouched"), 0o600)
	os.Mkdir(root+"/etc", 0o755)
	for _, name := range []string{"hostname", "machine-id", "hosts.squib"} {
		if err := os.Symlink(victim, root+"/etc/"+name); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.WriteHostname("vm-1"); err != nil {
		t.Fatal(err)
	}
	id := strings.Repeat("0f", 16)
	for range 2 {
		if err := g.SetMachineID(id); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"victim": "untouched", "etc/hostname": "vm-1\n", "etc/machine-id": id + "\n", "etc/hosts": localhost + "127.0.1.1 vm-1 # squib\n"} {
		if got, err := os.ReadFile(root + "/" + name); err != nil || string(got) != want {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
	if entries, _ := os.ReadDir(root + "/etc"); len(entries) != 3 {
		t.Errorf("left over: %v", entries)
	}
}

func TestFilesAreUpdatedInPlaceUnlessTheyAreSomethingElse(t *testing.T) {
	const long, short = "a-name-that-is-long", "short"
	large := strings.Repeat("x", mostInPlace+1)
	for kind, c := range map[string]struct {
		prepare func(path string) error
		inPlace bool
	}{
		"a file":       {func(path string) error { return os.WriteFile(path, []byte(long), 0o640) }, true},
		"a large file": {func(path string) error { return os.WriteFile(path, []byte(large), 0o644) }, false},
		"a pipe":       {func(path string) error { return syscall.Mkfifo(path, 0o644) }, false},
		"nothing":      {func(string) error { return nil }, false},
		"a second name": {func(path string) error {
			return errors.Join(os.WriteFile(path+".other", []byte(long), 0o644), os.Link(path+".other", path))
		}, false},
	} {
		t.Run(kind, func(t *testing.T) {
			root := t.TempDir()
			path := root + "/file"
			if err := c.prepare(path); err != nil {
				t.Fatal(err)
			}
			before, _ := os.Lstat(path)
			for _, content := range []string{short, long, short} {
				if err := (Guest{root}).update("file", content, 0o644); err != nil {
					t.Fatal(err)
				}
				if got, _ := os.ReadFile(path); string(got) != content {
					t.Fatalf("got %q, want %q", got, content)
				}
				after, _ := os.Lstat(path)
				if c.inPlace != os.SameFile(before, after) || c.inPlace && after.Mode() != before.Mode() {
					t.Fatalf("in place: %v, want %v; mode %v, before %v", !c.inPlace, c.inPlace, after.Mode(), before.Mode())
				}
			}
			if other, err := os.ReadFile(path + ".other"); err == nil && string(other) != long {
				t.Fatalf("the other name has %q", other)
			}
		})
	}
}

func TestNamesThatAreRefused(t *testing.T) {
	for _, name := range []string{"", "a b", "a\nb", "-a", ".a", "ä", "a/b", "a_b", strings.Repeat("a", 65)} {
		if CheckHostname(name) == nil {
			t.Errorf("%q is a host name", name)
		}
	}
	for _, name := range []string{"a", "VM-7k2m.example", "0", strings.Repeat("a", 64)} {
		if err := CheckHostname(name); err != nil {
			t.Error(err)
		}
	}
	for _, id := range []string{"", strings.Repeat("0", 31), strings.Repeat("0", 33), strings.Repeat("G", 32), strings.Repeat("A", 32), strings.Repeat("0", 31) + "\n"} {
		if CheckMachineID(id) == nil {
			t.Errorf("%q is a machine id", id)
		}
	}
	for _, n := range []int{0, MinEntropy - 1, MaxEntropy + 1} {
		if (Guest{}).AddEntropy(make([]byte, n)) == nil {
			t.Errorf("%d bytes are entropy", n)
		}
	}
}
