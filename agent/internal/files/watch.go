package files

import (
	"context"
	"errors"
	"os"
	"slices"
	"syscall"
	"time"
)

// Event is a change below a watched directory. Type idle reports a period without changes.
type Event struct {
	Type string // created, modified, deleted, moved, attributes, overflow, idle
	Path string
	From string // the old path of a move
}

const (
	// moveWait bounds the wait for the second half of a move: the kernel queues the two halves
	// separately.
	moveWait = 20 * time.Millisecond
	// batch bounds the events in one report.
	batch = 512
)

// Watcher reports changes in a directory, and with recursive in everything below it.
type Watcher struct {
	tree   watchTree
	file   *os.File // the inotify descriptor
	queue  []change
	buffer []byte
	events []Event
	report func([]Event) error
}

var errEnd = errors.New("the directory is gone")

// Watch starts watching the directory at path.
func Watch(path string, recursive bool) (*Watcher, error) {
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK)
	if err != nil {
		return nil, cannotWatch(path, err.Error())
	}
	w := &Watcher{file: os.NewFile(uintptr(fd), "inotify"), buffer: make([]byte, 64<<10)}
	w.tree = watchTree{inotify: fd, root: path, recursive: recursive, paths: map[int32]string{}, listed: map[string]bool{}, found: w.created}
	if err := w.tree.start(); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// Close releases the watches. Run must have returned.
func (w *Watcher) Close() { w.file.Close() }

// Run reports events in batches until ctx is done or report fails. It returns nil when the watched
// directory is gone. After each period idle without a change it reports an idle event.
func (w *Watcher) Run(ctx context.Context, idle time.Duration, report func([]Event) error) error {
	w.report = report
	defer context.AfterFunc(ctx, func() { w.file.SetReadDeadline(time.Unix(1, 0)) })()
	for {
		for len(w.queue) > 0 {
			next := w.queue[0]
			w.queue = w.queue[1:]
			if err := w.handle(next); err == errEnd {
				return w.flush()
			} else if err != nil {
				return err
			}
		}
		if err := w.flush(); err != nil {
			return err
		}
		w.tree.forgetListed()
		switch err := w.read(ctx, idle); {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, os.ErrDeadlineExceeded):
			w.events = append(w.events, Event{Type: "idle"})
		case err != nil:
			return err
		}
	}
}

func (w *Watcher) flush() error {
	if len(w.events) == 0 {
		return nil
	}
	err := w.report(w.events)
	w.events = w.events[:0]
	return err
}

func (w *Watcher) emit(event Event) error {
	w.events = append(w.events, event)
	if len(w.events) < batch {
		return nil
	}
	return w.flush()
}

func (w *Watcher) created(path string) error { return w.emit(Event{Type: "created", Path: path}) }

// read waits up to timeout for changes.
func (w *Watcher) read(ctx context.Context, timeout time.Duration) error {
	w.file.SetReadDeadline(time.Now().Add(timeout))
	if ctx.Err() != nil { // the context's deadline, which the line above may have replaced
		return ctx.Err()
	}
	n, err := w.file.Read(w.buffer)
	if err == nil {
		w.queue = append(w.queue, changesIn(w.buffer[:n])...)
	}
	return err
}

// handle processes a change.
func (w *Watcher) handle(c change) error {
	if c.mask&syscall.IN_Q_OVERFLOW != 0 {
		if err := w.emit(Event{Type: "overflow", Path: w.tree.root}); err != nil {
			return err
		}
		return w.reportLost(w.tree.addBelow(w.tree.root, 0, false))
	}
	dir, known := w.tree.paths[c.watch]
	if !known {
		return nil
	}
	root := c.watch == w.tree.rootWatch
	if c.mask&syscall.IN_IGNORED != 0 {
		delete(w.tree.paths, c.watch)
	}
	if c.mask&(syscall.IN_IGNORED|syscall.IN_DELETE_SELF|syscall.IN_MOVE_SELF|syscall.IN_UNMOUNT) != 0 && root {
		return errEnd
	}
	path := dir
	if c.name != "" {
		path = join(dir, c.name)
	} else if !root { // also reported by the watch on its parent
		return nil
	}
	isDir := c.mask&syscall.IN_ISDIR != 0
	switch {
	case c.mask&(syscall.IN_CREATE|syscall.IN_MOVED_TO) != 0:
		return w.handleCreated(path, isDir)
	case c.mask&syscall.IN_MOVED_FROM != 0:
		return w.handleMovedFrom(path, c, isDir)
	case c.mask&syscall.IN_DELETE != 0:
		delete(w.tree.listed, path)
		return w.emit(Event{Type: "deleted", Path: path})
	case c.mask&syscall.IN_MODIFY != 0:
		return w.emit(Event{Type: "modified", Path: path})
	case c.mask&syscall.IN_ATTRIB != 0:
		return w.emit(Event{Type: "attributes", Path: path})
	}
	return nil
}

func (w *Watcher) handleCreated(path string, isDir bool) error {
	if w.tree.listed[path] {
		delete(w.tree.listed, path)
		return nil
	}
	if err := w.created(path); err != nil || !isDir {
		return err
	}
	return w.reportLost(w.tree.add(path, 1, true))
}

// handleMovedFrom reports an entry that was renamed, or moved out of the tree.
func (w *Watcher) handleMovedFrom(path string, c change, isDir bool) error {
	delete(w.tree.listed, path)
	isOther := func(other change) bool { return other.mask&syscall.IN_MOVED_TO != 0 && other.cookie == c.cookie }
	if len(w.queue) == 0 {
		w.read(context.Background(), moveWait)
	}
	if i := slices.IndexFunc(w.queue, isOther); i >= 0 {
		dir, known := w.tree.paths[w.queue[i].watch]
		to := join(dir, w.queue[i].name)
		w.queue = slices.Delete(w.queue, i, i+1)
		if known {
			if err := w.emit(Event{Type: "moved", Path: to, From: path}); err != nil || !isDir {
				return err
			}
			if w.tree.renamed(path, to) {
				return nil
			}
			return w.reportLost(w.tree.add(to, 1, true))
		}
	}
	if isDir {
		w.tree.unwatch(path)
	}
	return w.emit(Event{Type: "deleted", Path: path})
}

// reportLost reports a part of the tree that cannot be watched, and lets the watcher continue.
func (w *Watcher) reportLost(err error) error {
	var limit *limitError
	if errors.As(err, &limit) {
		return w.emit(Event{Type: "overflow", Path: limit.path})
	}
	return err
}
