package files

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"squib/agent/internal/process"
)

// watched collects a watcher's events, with paths relative to root.
type watched struct {
	t      *testing.T
	root   string
	events chan string
	cancel func()
	ended  chan error
}

func watch(t *testing.T, root string, recursive bool) *watched {
	t.Helper()
	watcher, err := Watch(root, recursive)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	w := &watched{t, root, make(chan string, 100_000), cancel, make(chan error, 1)}
	go func() {
		w.ended <- watcher.Run(ctx, time.Minute, func(events []Event) error {
			for _, e := range events {
				text := e.Type + " " + strings.TrimPrefix(e.Path, root)
				if e.From != "" {
					text += " from " + strings.TrimPrefix(e.From, root)
				}
				w.events <- text
			}
			return nil
		})
		watcher.Close()
	}()
	t.Cleanup(cancel)
	return w
}

// until returns the events up to last, without repetitions.
func (w *watched) until(last string) (events []string) {
	w.t.Helper()
	for timeout := time.After(10 * time.Second); ; {
		select {
		case event := <-w.events:
			events = append(events, event)
			if event == last {
				return slices.Compact(events)
			}
		case <-timeout:
			w.t.Fatalf("no %q after %q", last, events)
		}
	}
}

func (w *watched) is(want ...string) {
	w.t.Helper()
	if got := w.until(want[len(want)-1]); !slices.Equal(got, want) {
		w.t.Errorf("got %q, want %q", got, want)
	}
}

func TestWatchADirectory(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(dir+"/sub", 0o755))
	other := t.TempDir()
	w := watch(t, dir, false)
	must(t, os.WriteFile(dir+"/f\xff", []byte("x"), 0o600))
	w.is("created /f\xff", "modified /f\xff")
	must(t, os.Chmod(dir+"/f\xff", 0o644))
	w.is("attributes /f\xff")
	must(t, os.Rename(dir+"/f\xff", dir+"/g"))
	w.is("moved /g from /f\xff")
	must(t, os.Rename(dir+"/g", other+"/g"))
	w.is("deleted /g")
	must(t, os.Rename(other+"/g", dir+"/h"))
	w.is("created /h")
	must(t, os.WriteFile(dir+"/sub/unseen", nil, 0o644))
	must(t, os.Rename(dir+"/h", dir+"/sub/h"))
	w.is("deleted /h")
	must(t, os.Remove(dir+"/sub/h"))
	must(t, os.Mkdir(dir+"/d", 0o755))
	w.is("created /d")
	must(t, os.Remove(dir+"/d"))
	w.is("deleted /d")
	must(t, os.Chmod(dir, 0o700))
	w.is("attributes ")
	must(t, os.RemoveAll(dir))
	if err := <-w.ended; err != nil {
		t.Errorf("got %v", err)
	}
}

func TestWatchATree(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	must(t, os.MkdirAll(dir+"/a/b/c", 0o755))
	must(t, os.Symlink(other, dir+"/a/link"))
	w := watch(t, dir, true)
	must(t, os.WriteFile(other+"/not-below", nil, 0o644))
	must(t, os.WriteFile(dir+"/a/b/c/f", nil, 0o644))
	w.is("created /a/b/c/f")
	must(t, os.Rename(dir+"/a/b", dir+"/moved"))
	w.is("moved /moved from /a/b")
	must(t, os.WriteFile(dir+"/moved/c/g", nil, 0o644))
	w.is("created /moved/c/g")
	must(t, os.Rename(dir+"/moved/c/g", dir+"/a/g"))
	w.is("moved /a/g from /moved/c/g")
	must(t, os.Rename(dir+"/moved", other+"/gone"))
	w.is("deleted /moved")
	must(t, os.WriteFile(other+"/gone/c/unseen", nil, 0o644))
	must(t, os.Rename(other+"/gone", dir+"/back"))
	events := w.until("created /back/c/unseen")
	slices.Sort(events)
	if want := []string{"created /back", "created /back/c", "created /back/c/f", "created /back/c/unseen"}; !slices.Equal(events, want) {
		// c/f and c/unseen are in no particular order
		if events = append(events, <-w.events); !slices.Equal(slices.Sorted(slices.Values(events)), want) {
			t.Errorf("got %q, want %q", events, want)
		}
	}
	must(t, os.WriteFile(dir+"/back/c/seen", nil, 0o644))
	w.until("created /back/c/seen")
}

// An entry of a new directory is reported once, whether it was created before or after the
// directory was watched.
func TestWatchNewDirectories(t *testing.T) {
	dir := t.TempDir()
	w := watch(t, dir, true)
	want := map[string]bool{}
	for i := range 200 {
		path := fmt.Sprintf("/d%d", i)
		for _, more := range []string{"", "/e", "/e/f"} {
			want["created "+path+more] = true
		}
		must(t, os.MkdirAll(dir+path+"/e", 0o755))
		must(t, os.WriteFile(dir+path+"/e/f", nil, 0o644))
	}
	must(t, os.WriteFile(dir+"/last", nil, 0o644))
	seen := map[string]int{}
	for len(seen) < len(want)+1 {
		select {
		case event := <-w.events:
			seen[event]++
		case <-time.After(10 * time.Second):
			t.Fatalf("%d of %d", len(seen), len(want))
		}
	}
	for event, times := range seen {
		if times != 1 || !want[event] && event != "created /last" {
			t.Errorf("%q: %d times", event, times)
		}
	}
}

func TestWatchEnds(t *testing.T) {
	before, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	w := watch(t, t.TempDir(), true)
	w.cancel()
	if err := <-w.ended; err != context.Canceled {
		t.Errorf("got %v", err)
	}
	watcher, err := Watch(t.TempDir(), true)
	must(t, err)
	count := 0
	err = watcher.Run(context.Background(), time.Millisecond, func(events []Event) error {
		if count++; len(events) != 1 || events[0].Type != "idle" {
			t.Errorf("got %v", events)
		}
		if count == 3 {
			return context.DeadlineExceeded
		}
		return nil
	})
	watcher.Close()
	if err != context.DeadlineExceeded {
		t.Errorf("got %v", err)
	}
	for path, code := range map[string]process.Code{"/none": NoSuchFile, "/etc/passwd": NotADirectory} {
		if _, err := Watch(path, true); process.CodeOf(err) != code {
			t.Errorf("%s: got %v", path, err)
		}
	}
	after, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	if len(after) != len(before) {
		t.Errorf("%d descriptors before, %d after", len(before), len(after))
	}
}

func TestWatchOverflow(t *testing.T) {
	limit, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	must(t, err)
	var most int
	fmt.Sscan(string(limit), &most)
	if most > 100_000 {
		t.Skip("the kernel's queue is very long here")
	}
	dir := t.TempDir()
	watcher, err := Watch(dir, true)
	must(t, err)
	defer watcher.Close()
	must(t, os.WriteFile(dir+"/a", nil, 0o644))
	must(t, os.WriteFile(dir+"/b", nil, 0o644))
	for i := range most + 10 { // alternating, so that the kernel does not merge them
		must(t, os.Chmod(dir+"/"+string("ab"[i%2]), 0o644))
	}
	must(t, os.Mkdir(dir+"/lost", 0o755))
	types := map[string]int{}
	err = watcher.Run(context.Background(), time.Minute, func(events []Event) error {
		for _, e := range events {
			types[e.Type]++
			if e.Type == "overflow" {
				go os.WriteFile(dir+"/lost/f", nil, 0o644)
			}
			if e.Path == dir+"/lost/f" {
				return context.Canceled
			}
		}
		return nil
	})
	if err != context.Canceled || types["overflow"] != 1 {
		t.Errorf("got %v, %v", err, types)
	}
}

func TestWatchHasALimit(t *testing.T) {
	dir := t.TempDir()
	for i := range maxWatches {
		must(t, os.Mkdir(fmt.Sprintf("%s/%d", dir, i), 0o755))
	}
	_, err := Watch(dir, true)
	if process.CodeOf(err) != process.Internal || !strings.Contains(err.Error(), "cannot be watched") {
		t.Errorf("got %v", err)
	}
	watcher, err := Watch(dir, false)
	must(t, err)
	watcher.Close()
}
