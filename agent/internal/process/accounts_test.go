package process

import (
	"reflect"
	"testing"
)

func TestLookup(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/etc/passwd", "root:x:0:0:root:/root:/bin/bash\nalice:x:1000:1000:A:/home/alice:/bin/zsh\r\n"+
		"broken:x:not-a-number:1:::\nshort:x:5\n\nbare:x:1001:1001:::\n42:x:7:7::/seven:/bin/7\n", 0o644)
	write(t, root+"/etc/group", "root:x:0:\nusers:x:100:bob,alice\nalice:x:1000:\nwheel:x:10:alice\nempty:x:x:alice\n", 0o644)
	accounts := Accounts{root}
	alice := Account{1000, 1000, []uint32{1000, 100, 10}, "alice", "/home/alice", "/bin/zsh"}
	aliceInWheel := alice
	aliceInWheel.GID, aliceInWheel.Groups = 10, []uint32{10, 100}
	for spec, want := range map[string]Account{
		"root":        {0, 0, []uint32{0}, "root", "/root", "/bin/bash"},
		"0":           {0, 0, []uint32{0}, "root", "/root", "/bin/bash"},
		"alice":       alice,
		"1000":        alice,
		"alice:wheel": aliceInWheel,
		"1000:10":     aliceInWheel,
		"alice:5":     {1000, 5, []uint32{5, 100, 10}, "alice", "/home/alice", "/bin/zsh"},
		"bare":        {1001, 1001, []uint32{1001}, "bare", "/", "/bin/sh"},
		"4242":        {4242, 0, []uint32{0}, "4242", "/", "/bin/sh"},
		"4242:users":  {4242, 100, []uint32{100}, "4242", "/", "/bin/sh"},
		"42":          {7, 7, []uint32{7}, "42", "/seven", "/bin/7"}, // a name before a number
	} {
		if got, err := accounts.Lookup(spec); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v, want %+v", spec, got, err, want)
		}
	}
	for _, spec := range []string{"", ":", "bob", "broken", "short", "-1", "4294967295", "4294967296", "alice:nogroup", "alice:", "alice:empty", "al", "1000 "} {
		if got, err := accounts.Lookup(spec); CodeOf(err) != NoSuchUser || err == nil {
			t.Errorf("%q: got %+v, %v", spec, got, err)
		}
	}
}

func TestLookupInAnImageWithoutAccounts(t *testing.T) {
	accounts := Accounts{t.TempDir()}
	want := Account{0, 0, []uint32{0}, "root", "/", "/bin/sh"}
	if got, err := accounts.Lookup("root"); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := accounts.Lookup("alice"); CodeOf(err) != NoSuchUser {
		t.Errorf("got %v", err)
	}
}
