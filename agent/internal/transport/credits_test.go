package transport

import (
	"bytes"
	"encoding/binary"
	"math/rand"
	"testing"
)

func frameOf(kind, flags byte, stream uint32, payload []byte) []byte {
	n := len(payload)
	b := []byte{byte(n >> 16), byte(n >> 8), byte(n), kind, flags}
	return append(binary.BigEndian.AppendUint32(b, stream), payload...)
}

func update(stream, increment uint32) []byte {
	return frameOf(kindUpdate, 0, stream, binary.BigEndian.AppendUint32(nil, increment))
}

// However frames are split, all others pass unchanged and in order, and window updates are lost
// only below the credit.
func TestCreditsKeepEverythingButUpdates(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	for range 200 {
		var all, others []byte
		given := map[uint32]uint32{}
		for range 50 {
			stream := uint32(random.Intn(3))
			if random.Intn(2) == 0 {
				increment := uint32(1 + random.Intn(200<<10))
				given[stream] += increment
				all = append(all, update(stream, increment)...)
				continue
			}
			payload := make([]byte, random.Intn(3)*random.Intn(300))
			random.Read(payload)
			frame := frameOf(byte(random.Intn(8)), 0, stream, payload)
			if frame[3] == kindReset {
				continue
			}
			all, others = append(all, frame...), append(others, frame...)
		}
		var c credits
		var written []byte
		for rest := all; len(rest) > 0; {
			n := min(len(rest), 1+random.Intn(40))
			written = append(written, c.filter(rest[:n])...)
			rest = rest[n:]
		}
		var passed []byte
		got := map[uint32]uint32{}
		for len(written) > 0 {
			size := frameHeaderLen + (int(written[0])<<16 | int(written[1])<<8 | int(written[2]))
			if written[3] == kindUpdate {
				increment := binary.BigEndian.Uint32(written[frameHeaderLen:])
				if stream := streamOf(written); increment < streamCredit || stream == 0 && increment < sessionCredit {
					t.Fatalf("%d bytes were given back to stream %d", increment, stream)
				} else {
					got[stream] += increment
				}
			} else {
				passed = append(passed, written[:size]...)
			}
			written = written[size:]
		}
		if !bytes.Equal(passed, others) {
			t.Fatal("other frames have changed")
		}
		for stream, sum := range given {
			enough := uint32(streamCredit)
			if stream == 0 {
				enough = sessionCredit
			}
			if held := sum - got[stream]; held >= enough || held != c.held[stream] {
				t.Fatalf("stream %d: %d given, %d written, %d held", stream, sum, got[stream], c.held[stream])
			}
		}
	}
}

func TestCreditsOfAnEndedStreamAreDropped(t *testing.T) {
	var c credits
	for stream, end := range map[uint32][]byte{
		1: frameOf(kindReset, 0, 1, make([]byte, 4)),
		3: frameOf(kindHeaders, flagEndStream, 3, []byte("x")),
		5: frameOf(kindData, flagEndStream, 5, nil),
	} {
		c.filter(update(stream, 5))
		c.filter(end)
	}
	if len(c.held) != 0 {
		t.Errorf("held: %v", c.held)
	}
}

func TestCreditsDoNotCopyWhatPasses(t *testing.T) {
	var c credits
	p := frameOf(kindData, 0, 1, make([]byte, 64<<10))
	if out := c.filter(p); &out[0] != &p[0] || len(out) != len(p) {
		t.Error("it was copied")
	}
}
