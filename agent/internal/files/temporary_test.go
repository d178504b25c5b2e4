package files

import (
	"os"
	"path/filepath"
	"testing"
)

func TestSweepRemovesWhatIsRecorded(t *testing.T) {
	dir := t.TempDir()
	records, err := OpenRecords(dir + "/records")
	must(t, err)
	file, err := records.Add()
	must(t, err)
	tree, err := records.Add()
	must(t, err)
	done, err := records.Add()
	must(t, err)
	records.Remove(done)
	other := TemporaryName()
	must(t, os.MkdirAll(dir+"/upper/a/b", 0o755))
	must(t, os.MkdirAll(dir+"/upper/a/"+tree+"/deep", 0o755))
	must(t, os.MkdirAll(dir+"/outside", 0o755))
	must(t, os.Symlink("../outside", dir+"/upper/link"))
	for _, path := range []string{"upper/a/b/" + file, "upper/" + file, "upper/a/" + tree + "/deep/x", "upper/" + other, "upper/" + done, "outside/" + file} {
		must(t, os.WriteFile(filepath.Join(dir, path), []byte("x"), 0o600))
	}
	records, err = OpenRecords(dir + "/records")
	must(t, err)
	must(t, records.Sweep(dir+"/upper"))
	for path, stays := range map[string]bool{
		"upper/a/b/" + file: false, "upper/" + file: false, "upper/a/" + tree: false, "upper/a/b": true,
		"upper/" + other: true, "upper/" + done: true, "outside/" + file: true, "records/" + file: false,
	} {
		if _, err := os.Lstat(filepath.Join(dir, path)); (err == nil) != stays {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestSweepWithoutRecordsDoesNotWalk(t *testing.T) {
	records, err := OpenRecords(t.TempDir() + "/records")
	must(t, err)
	must(t, records.Sweep("/none"))
}

func TestNoRecordsGiveNamesAllTheSame(t *testing.T) {
	var records *Records
	name, err := records.Add()
	if records.Remove(name); err != nil || name == "" {
		t.Errorf("got %q, %v", name, err)
	}
}
