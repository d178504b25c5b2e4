package transport

import "encoding/binary"

const (
	// How much window to return at a time. The host's windows are 2 MiB for a stream and 32 MiB for
	// the session, so a host does not have to wait for these amounts.
	streamCredit  = 512 << 10
	sessionCredit = 2 << 20

	updateLen     = frameHeaderLen + 4
	kindData      = 0
	kindHeaders   = 1
	kindReset     = 3
	kindUpdate    = 8
	flagEndStream = 1
)

// credits merges the WINDOW_UPDATE frames that net/http writes for every 16 KiB read. Through an
// emulated port, each frame costs as much as 50 KiB of data.
type credits struct {
	head    []byte            // the start of an incomplete frame: at most its header, or most of a WINDOW_UPDATE
	passing int               // bytes of the current frame still to be passed through
	held    map[uint32]uint32 // window held back, by stream; 0 is the session
}

// filter returns the bytes to write instead of p. It may return p itself.
func (c *credits) filter(p []byte) []byte {
	var out []byte
	start := 0 // of the bytes to pass through unchanged
	for i := 0; i < len(p); {
		if c.passing > 0 {
			n := min(c.passing, len(p)-i)
			c.passing -= n
			i += n
			continue
		}
		if len(c.head) == 0 && len(p)-i >= updateLen {
			if !c.isUpdate(p[i:]) {
				c.passing = frameHeaderLen + c.begin(p[i:])
				continue
			}
			out = c.hold(append(out, p[start:i]...), p[i:])
			i += updateLen
			start = i
			continue
		}
		out = append(out, p[start:i]...)
		c.head = append(c.head, p[i])
		i++
		start = i
		switch {
		case len(c.head) < frameHeaderLen:
		case !c.isUpdate(c.head):
			out = append(out, c.head...)
			c.passing = c.begin(c.head)
			c.head = c.head[:0]
		case len(c.head) == updateLen:
			out = c.hold(out, c.head)
			c.head = c.head[:0]
		}
	}
	if start == 0 {
		return p
	}
	return append(out, p[start:]...)
}

func (c *credits) isUpdate(frame []byte) bool { return frame[3] == kindUpdate }

// begin processes the header of a frame to pass through, and returns the length of its payload. If
// the frame ends a stream, the window held back for that stream is dropped.
func (c *credits) begin(frame []byte) int {
	kind, ends := frame[3], frame[4]&flagEndStream != 0
	if kind == kindReset || ends && (kind == kindData || kind == kindHeaders) {
		delete(c.held, streamOf(frame))
	}
	return int(frame[0])<<16 | int(frame[1])<<8 | int(frame[2])
}

// hold adds a WINDOW_UPDATE to the window held back for its stream. Once that is enough, it appends
// one frame for all of it to out.
func (c *credits) hold(out, frame []byte) []byte {
	stream, enough := streamOf(frame), uint32(streamCredit)
	if stream == 0 {
		enough = sessionCredit
	}
	if c.held == nil {
		c.held = map[uint32]uint32{}
	}
	c.held[stream] += binary.BigEndian.Uint32(frame[frameHeaderLen:])
	if c.held[stream] < enough {
		return out
	}
	out = append(out, frame[:frameHeaderLen]...)
	out = binary.BigEndian.AppendUint32(out, c.held[stream])
	delete(c.held, stream)
	return out
}

func streamOf(frame []byte) uint32 { return binary.BigEndian.Uint32(frame[5:]) &^ (1 << 31) }
