package transport

const (
	// MaxFrame is the agent's SETTINGS_MAX_FRAME_SIZE. The host's flush is that many bytes plus a
	// frame header.
	MaxFrame = 262144

	frameHeaderLen = 9
)

// framing tracks the boundaries of the host's HTTP/2 frames, to detect a header with a length over
// MaxFrame. Both the 0xFF flush of a new handshake and a bare SYNC line look like that. net/http
// would send GOAWAY, stop reading for a second, and block forever if the GOAWAY cannot be written.
// Instead, the session ends at that byte, and the scanner gets the rest.
type framing struct {
	header  [frameHeaderLen]byte
	have    int // bytes of the header read
	payload int // bytes of the current payload still to come
}

// advance processes b. Its first good bytes belong to valid frames. If overflow is set, f.header is
// the invalid header and b[next:] follows it. The header starts at b[good], or in an earlier read
// if good is 0.
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
