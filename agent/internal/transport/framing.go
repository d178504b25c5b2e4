package transport

const (
	// MaxFrame is the agent's SETTINGS_MAX_FRAME_SIZE. The host's flush is this many bytes and a frame header more.
	MaxFrame = 262144

	frameHeaderLen = 9
)

// framing follows the borders of the HTTP/2 frames that the host sends, to see the one thing that cannot be a frame: a
// header whose length is over MaxFrame. That is how both the 0xFF flush of a host that resynchronizes and a
// bare SYNC line look. net/http would answer with GOAWAY, stop reading for a second, and wait for ever if the
// GOAWAY cannot be written; the session has to end at that byte, and the rest belongs to the scanner.
type framing struct {
	header  [frameHeaderLen]byte
	have    int // bytes of header seen
	payload int // bytes of the current frame's payload still to come
}

// advance follows b, of which the first good bytes belong to frames. If overflow is set, f.header is the impossible header:
// it began at b[good] or, with good 0, maybe in a read before; b[next:] is what follows it.
func (f *framing) advance(b []byte) (good, next int, overflow bool) {
	for next < len(b) {
		if f.payload > 0 {
			n := min(f.payload, len(b)-next)
			f.payload -= n
			next += n
			continue
		}
		start := next - f.have
		n := copy(f.header[f.have:], b[next:])
		f.have += n
		next += n
		if f.have < frameHeaderLen {
			break
		}
		length := int(f.header[0])<<16 | int(f.header[1])<<8 | int(f.header[2])
		if length > MaxFrame {
			return max(start, 0), next, true
		}
		f.have, f.payload = 0, length
	}
	return next, next, false
}
