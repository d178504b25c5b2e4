package process

import (
	"maps"
	"testing"
)

func TestNames(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/etc/passwd", "root:x:0:0::/:/bin/sh\nalias:x:0:0::/:/bin/sh\nbroken:x:one:1::/:\nme:x:1000:1000::/:/bin/sh\n", 0o644)
	write(t, root+"/etc/group", "wheel:x:0:\nshort:x\nme:x:1000:\n", 0o644)
	users, groups := Accounts{root}.Names()
	if !maps.Equal(users, map[uint32]string{0: "root", 1000: "me"}) || !maps.Equal(groups, map[uint32]string{0: "wheel", 1000: "me"}) {
		t.Errorf("got %v, %v", users, groups)
	}
	if users, groups := (Accounts{t.TempDir()}).Names(); len(users)+len(groups) != 0 {
		t.Errorf("got %v, %v", users, groups)
	}
}
