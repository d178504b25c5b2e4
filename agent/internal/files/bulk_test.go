package files

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"testing/iotest"
)

func random(size int) []byte {
	data := make([]byte, size)
	source := rand.NewChaCha8([32]byte{1})
	source.Read(data)
	return data
}

// Every length around those at which something changes goes in and comes out again, also from the middle.
func TestLargeFilesAreExact(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	all := random(keepCached + 3*bulkPiece)
	for _, size := range []int{
		keepCached - 1, keepCached, keepCached + 1, keepCached + directBlock, keepCached + bulkPiece - 1, keepCached + bulkPiece,
		keepCached + bulkPiece + 513, len(all),
	} {
		if _, err := Write(path, iotest.HalfReader(bytes.NewReader(all[:size])), Attributes{}, false); err != nil {
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
		b, err := newBulk(int(file.Fd()), 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.close)
		if !b.direct {
			t.Skip("the filesystem has no direct access")
		}
		whole := b.buffer
		b.buffer = whole[1 : 1+bulkPiece/2] // an address that no disk takes
		t.Cleanup(func() { b.buffer = whole })
		return b
	}
	b := bulkOf()
	for left := want; len(left) > 0; {
		n := copy(b.buffer, left)
		left = left[n:]
		if err := b.write(n); err != nil || b.direct {
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

// The pieces of many transfers together stay small.
func TestManyBulksHaveSmallPieces(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var all []*bulk
	for i := range bulkMost + mostBuffers + 2 {
		b, err := newBulk(int(file.Fd()), 0)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b)
		want := bulkPiece
		if i >= bulkMost {
			want = bufferSize
		}
		if i >= bulkMost+mostBuffers {
			want = smallBuffer
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

// Of small files too: what many slow hosts hold together must not fill a small guest.
func TestManyTransfersHaveSmallBuffers(t *testing.T) {
	var all []func()
	for i := range mostBuffers + 2 {
		b, done := takeBuffer()
		all = append(all, done)
		if large := len(b) == bufferSize; large != (i < mostBuffers) {
			t.Error("buffer " + strconv.Itoa(i) + " has " + strconv.Itoa(len(b)) + " bytes")
		}
	}
	for _, done := range all {
		done()
	}
	if n := buffersUsed.Load(); n != 0 {
		t.Errorf("%d are still counted", n)
	}
}
