package transport

import (
	"bytes"
	"strconv"
)

// Version is the version of protocol/agent.md that this agent speaks.
const Version = 1

const (
	// maxLine is how many bytes before a newline can belong to a handshake line.
	maxLine = 128
	// nonceLen is the length of a nonce in hex digits.
	nonceLen = 32
	// clientPreface opens every HTTP/2 connection (RFC 9113, 3.4).
	clientPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
)

var lineStart = []byte("SQUIB-")

// scanner finds the start of a session in a stream that may hold anything before it.
//
// It is a pure state machine: bytes in, replies out. What counts of a line is the text from its last "SQUIB-", because
// the rest of a dead session, or the 0xFF flush of the contract, ends without a newline. The client preface is part of
// what it waits for: a GO that no preface follows (the host died in between) falls back to scanning without
// losing the SYNC that comes next.
//
// The zero value is ready for use.
type scanner struct {
	line    []byte // the last maxLine bytes since the last newline
	nonce   string // of the last OK; empty when no GO can be valid
	preface int    // bytes of clientPreface seen after a valid GO; only with inGo
	inGo    bool
}

// feed consumes bytes of b and stops early at two events: reply is a line to send at once; started says that the byte after
// the consumed ones is the first after the client preface. n is the number of bytes consumed.
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
			*s = scanner{} // not a preface: what was seen of it holds no handshake line
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

// keep appends b to the current line, of which it holds no more than the last maxLine bytes.
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

// takeLine acts on the line that a newline has just ended, and returns the answer to a SYNC.
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

// parseLine reads "SQUIB-<verb> <version> <nonce>" at the end of line. The verb is empty when there is none.
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
