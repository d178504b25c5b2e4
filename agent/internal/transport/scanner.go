package transport

import (
	"bytes"
	"strconv"
)

// Version is the version of protocol/agent.md that this agent speaks.
const Version = 1

const (
	// maxLine is the maximum length of a handshake line.
	maxLine = 128
	// nonceLen is the length of a nonce in hex digits.
	nonceLen = 32
	// clientPreface opens every HTTP/2 connection (RFC 9113, 3.4).
	clientPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
)

var lineStart = []byte("SQUIB-")

// scanner finds the start of a session in a stream that may hold any bytes before it.
//
// It is a pure state machine: bytes in, replies out. A handshake line starts at the last "SQUIB-"
// of a line, because the rest of a dead session and the 0xFF flush do not end with a newline. The
// scanner also waits for the client preface. If no preface follows a GO, because the host has died,
// it resumes scanning without losing the next SYNC.
//
// The zero value is ready for use.
type scanner struct {
	line    []byte // up to maxLine bytes since the last newline
	nonce   string // of the last OK; empty if no GO would be valid
	preface int    // bytes of clientPreface read after a valid GO
	inGo    bool
}

// feed consumes n bytes of b. It stops early for a reply, to be sent at once, and when started: the
// next byte is then the first after the client preface.
func (s *scanner) feed(b []byte) (n int, reply []byte, started bool) {
	for n < len(b) {
		if s.inGo {
			if b[n] == clientPreface[s.preface] {
				n++
				if s.preface++; s.preface == len(clientPreface) {
					*s = scanner{}
					return n, nil, true
				}
				continue
			}
			*s = scanner{} // not a preface; the part that matched contains no handshake line
		}
		end := bytes.IndexByte(b[n:], '\n')
		if end < 0 {
			s.keep(b[n:])
			return len(b), nil, false
		}
		s.keep(b[n : n+end])
		n += end + 1
		if reply = s.takeLine(); reply != nil {
			return n, reply, false
		}
	}
	return n, nil, false
}

// keep appends b to the current line, and keeps its last maxLine bytes.
func (s *scanner) keep(b []byte) {
	if len(b) >= maxLine {
		s.line = append(s.line[:0], b[len(b)-maxLine:]...)
		return
	}
	if over := len(s.line) + len(b) - maxLine; over > 0 {
		s.line = append(s.line[:0], s.line[over:]...)
	}
	s.line = append(s.line, b...)
}

// takeLine processes the line that a newline has ended, and returns the reply to a SYNC.
func (s *scanner) takeLine() (reply []byte) {
	verb, version, nonce := parseLine(s.line)
	s.line = s.line[:0]
	switch {
	case verb == "SYNC":
		s.nonce = nonce
		return []byte("SQUIB-OK " + strconv.Itoa(Version) + " " + nonce + "\n")
	case verb == "GO" && version == Version && nonce == s.nonce:
		s.nonce, s.inGo, s.preface = "", true, 0
	}
	return nil
}

// parseLine parses "SQUIB-<verb> <version> <nonce>" at the end of line. Without a valid one, the
// verb is empty.
func parseLine(line []byte) (verb string, version int, nonce string) {
	start := bytes.LastIndex(line, lineStart)
	if start < 0 {
		return "", 0, ""
	}
	fields := bytes.Split(line[start+len(lineStart):], []byte{' '})
	if len(fields) != 3 || len(fields[1]) > 9 || !isNonce(fields[2]) {
		return "", 0, ""
	}
	for _, c := range fields[1] {
		if c < '0' || c > '9' {
			return "", 0, ""
		}
	}
	version, err := strconv.Atoi(string(fields[1]))
	if err != nil {
		return "", 0, ""
	}
	return string(fields[0]), version, string(fields[2])
}

func isNonce(b []byte) bool {
	if len(b) != nonceLen {
		return false
	}
	for _, c := range b {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
