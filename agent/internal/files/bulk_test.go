package files

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"unsafe"
)

func random(size int) []byte {
	data := make([]byte, size)
	source := rand.NewChaCha8([32]byte{1})
	source.Read(data)
	return data
}

// Files with lengths around every threshold are written and read back, also from the middle.
func TestLargeFilesAreExact(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	all := random(keepCached + 3*bulkPiece)
	for _, size := range []int{
		keepCached - 1, keepCached, keepCached + 1, keepCached + directBlock, keepCached + bulkPiece - 1, keepCached + bulkPiece,
		keepCached + bulkPiece + 513, len(all),
	} {
		if _, err := Write(path, iotest.HalfReader(bytes.NewReader(all[:size])), Attributes{}, false, TemporaryName()); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(path); !bytes.Equal(got, all[:size]) {
			t.Errorf("%d bytes: the file is not what was written", size)
		}
		for _, part := range [][2]int{{0, size}, {1, size}, {directBlock, size}, {0, keepCached + 700}, {size - 1, 9}, {size, 9}} {
			offset := part[0]
			end := min(offset+part[1], size)
			r, err := Open(path, int64(offset), int64(part[1]))
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			n, err := r.WriteTo(&got)
			r.Close()
			if err != nil || n != int64(end-offset) || !bytes.Equal(got.Bytes(), all[offset:end]) {
				t.Errorf("%d bytes from %d: %d came, %v", part[1], offset, n, err)
			}
		}
	}
}

func TestBulkGoesOnThroughTheCacheWhereItMust(t *testing.T) {
	want := random(keepCached + 3*bulkPiece + 100)
	path := filepath.Join(t.TempDir(), "f")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	bulkOf := func() *bulk {
		b := newBulk(int(file.Fd()), 0, nil)
		t.Cleanup(b.close)
		if !b.direct {
			t.Skip("the filesystem has no direct access")
		}
		b.buffer = b.buffer[1 : 1+bulkPiece/2] // an address that no disk accepts
		return b
	}
	b := bulkOf()
	for left := want; len(left) > 0; {
		n := copy(b.buffer, left)
		left = left[n:]
		if err := b.write(b.buffer[:n]); err != nil || b.direct {
			t.Fatal(err, b.direct)
		}
	}
	file.Seek(0, io.SeekStart)
	b = bulkOf()
	digest := sha256.New()
	for n := -1; n != 0; {
		p, err := b.read(int64(len(want)))
		if err != nil || b.direct {
			t.Fatal(err, b.direct)
		}
		n = len(p)
		digest.Write(p)
	}
	if sum := sha256.Sum256(want); !bytes.Equal(digest.Sum(nil), sum[:]) {
		t.Error("what was read is not what was written")
	}
}

// Buffers of many transfers stay small in total.
func TestManyBulksHaveSmallPieces(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var all []*bulk
	spare := make([]byte, bufferSize)
	for i := range bulkMost + 2 {
		b := newBulk(int(file.Fd()), 0, spare)
		all = append(all, b)
		want := bulkPiece
		if i >= bulkMost {
			want = bufferSize
		}
		if len(b.buffer) != want {
			t.Error("piece " + strconv.Itoa(i) + " has " + strconv.Itoa(len(b.buffer)) + " bytes")
		}
	}
	for _, b := range all {
		b.close()
	}
	if n := bulks.Load(); n != 0 {
		t.Errorf("%d are still counted", n)
	}
}

// stuck returns the given number of bytes, then blocks until it is released.
type stuck struct {
	left int
	wait *sync.WaitGroup
	free chan struct{}
}

func (s *stuck) Read(b []byte) (int, error) {
	if s.left == 0 {
		s.wait.Done()
		<-s.free
		return 0, io.EOF
	}
	n := min(len(b), s.left)
	clear(b[:n])
	s.left -= n
	return n, nil
}

// ownMemory returns the memory of this process.
func ownMemory(t *testing.T) (bytes int64) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(status), "RssAnon:")
	if _, err := fmt.Sscan(text, &bytes); err != nil {
		t.Fatal(err)
	}
	return bytes << 10
}

// Stalled uploads take little memory, however many there are.
func TestALargeUploadHoldsOneBuffer(t *testing.T) {
	const uploads = 24
	bulks.Add(bulkMost) // the large buffers are all in use
	defer bulks.Add(-bulkMost)
	dir := t.TempDir()
	debug.FreeOSMemory()
	debug.FreeOSMemory() // a sync.Pool frees its objects at the second collection
	before := ownMemory(t)
	var waiting, ended sync.WaitGroup
	free := make(chan struct{})
	for i := range uploads {
		waiting.Add(1)
		ended.Add(1)
		go func() {
			defer ended.Done()
			body := &stuck{keepCached + bufferSize - 1, &waiting, free}
			if _, err := Write(filepath.Join(dir, strconv.Itoa(i)), body, Attributes{}, false, TemporaryName()); err != nil {
				t.Error(err)
			}
		}()
	}
	waiting.Wait()
	if each := (ownMemory(t) - before) / uploads; each > bufferSize*3/2 {
		t.Errorf("each takes %d KiB", each>>10)
	}
	close(free)
	ended.Wait()
}

// With a misaligned buffer, direct I/O fails and the whole transfer goes through the cache.
func TestBuffersBeginAtTheBorderOfAPage(t *testing.T) {
	var all [][]byte
	for range 2 * mostBuffers {
		all = append(all, takeBuffer())
	}
	for _, buffer := range all {
		if at := uintptr(unsafe.Pointer(&buffer[0])); at%directBlock != 0 {
			t.Errorf("a buffer of %d bytes begins at %#x", len(buffer), at)
		}
		putBuffer(buffer)
	}
}

// held accepts the first piece only, until it is released.
type held struct {
	wait *sync.WaitGroup
	free chan struct{}
	once sync.Once
}

func (h *held) Write(b []byte) (int, error) {
	h.once.Do(h.wait.Done)
	<-h.free
	return 0, io.ErrClosedPipe
}

// Hundreds of stalled downloads do not exhaust the guest's memory.
func TestManyTransfersHaveSmallBuffers(t *testing.T) {
	const downloads = 160
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 2*keepCached); err != nil {
		t.Fatal(err)
	}
	debug.FreeOSMemory()
	debug.FreeOSMemory()
	before := ownMemory(t)
	var waiting, ended sync.WaitGroup
	free := make(chan struct{})
	for i := range downloads {
		waiting.Add(1)
		ended.Add(1)
		go func() {
			defer ended.Done()
			to := &held{wait: &waiting, free: free}
			if i%2 == 0 {
				packer, err := NewPacker([]string{path}, Names{}, true)
				if err == nil {
					err = packer.Pack(to)
				}
				if err != io.ErrClosedPipe {
					t.Error(err)
				}
				return
			}
			r, err := Open(path, 0, 2*keepCached)
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			if _, err := r.WriteTo(to); err != io.ErrClosedPipe {
				t.Error(err)
			}
		}()
	}
	waiting.Wait()
	if all := ownMemory(t) - before; all > 32<<20 {
		t.Errorf("they take %d MiB", all>>20)
	}
	close(free)
	ended.Wait()
	if n := inUse.Load(); n != 0 {
		t.Errorf("%d buffers are still counted", n)
	}
}

// The cache belongs to the guest's programs: a transfer uses and keeps what is cached, and adds
// nothing.
func TestTheCacheStaysAsItIs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	want := random(2*keepCached + 100)
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fd := int(file.Fd())
	for _, cached := range []bool{true, false} {
		if !cached {
			syscall.Fsync(fd)
			dontNeed(fd, 0, 0)
			if isCached(fd, keepCached, bulkPiece) {
				t.Skip("the filesystem keeps all in memory")
			}
		}
		r, err := Open(path, 0, int64(len(want)))
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		_, err = r.WriteTo(&got)
		r.Close()
		if err != nil || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%d bytes, %v", got.Len(), err)
		}
		if isCached(fd, 0, bulkPiece) != cached || isCached(fd, keepCached, bulkPiece) != cached {
			t.Errorf("cached before: %v, afterwards not so", cached)
		}
	}
}
