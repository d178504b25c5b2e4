package transport

import (
	"fmt"
	"math/rand"
	"slices"
	"strings"
	"testing"
)

var (
	n1 = strings.Repeat("0123456789abcdef", 2)
	n2 = strings.Repeat("fedcba9876543210", 2)
)

func syncLine(nonce string) string { return "SQUIB-SYNC 1 " + nonce + "\n" }
func goLine(nonce string) string   { return "SQUIB-GO 1 " + nonce + "\n" }
func okLine(nonce string) string   { return "SQUIB-OK 1 " + nonce + "\n" }

// scan feeds the chunks and returns what happened: the replies, and "start" with the remaining
// bytes.
func scan(chunks ...string) (events []string) {
	var s scanner
	for i, chunk := range chunks {
		for b := []byte(chunk); len(b) > 0; {
			n, reply, started := s.feed(b)
			b = b[n:]
			if reply != nil {
				events = append(events, string(reply))
			}
			if started {
				return append(events, "start:"+string(b)+strings.Join(chunks[i+1:], ""))
			}
		}
	}
	return events
}

func TestScanner(t *testing.T) {
	noise := "\x00\x00\x12\x00\x01\xff old frame"
	flush := strings.Repeat("\xff", MaxFrame+9)
	for name, c := range map[string]struct {
		in   string
		want []string
	}{
		"a handshake":                           {syncLine(n1) + goLine(n1) + clientPreface + "rest", []string{okLine(n1), "start:rest"}},
		"no handshake":                          {"GET / HTTP/1.1\r\n\r\n\n\n", nil},
		"stale bytes before, without newline":   {noise + syncLine(n1) + goLine(n1) + clientPreface, []string{okLine(n1), "start:"}},
		"the flush before, without newline":     {flush + syncLine(n1) + goLine(n1) + clientPreface, []string{okLine(n1), "start:"}},
		"half a line before":                    {"SQUIB-SYNC 1 0123" + syncLine(n1), []string{okLine(n1)}},
		"every SYNC is answered":                {syncLine(n1) + syncLine(n2) + syncLine(n1), []string{okLine(n1), okLine(n2), okLine(n1)}},
		"only the last nonce goes":              {syncLine(n1) + syncLine(n2) + goLine(n1) + clientPreface + goLine(n2) + clientPreface, []string{okLine(n1), okLine(n2), "start:"}},
		"a GO without SYNC":                     {goLine(n1) + clientPreface, nil},
		"a GO with no nonce":                    {"SQUIB-GO 1 \n" + clientPreface, nil},
		"a GO of another version":               {syncLine(n1) + "SQUIB-GO 2 " + n1 + "\n" + clientPreface, []string{okLine(n1)}},
		"a SYNC of another version":             {"SQUIB-SYNC 7 " + n1 + "\n", []string{okLine(n1)}},
		"a SYNC of a version that is no number": {"SQUIB-SYNC x " + n1 + "\nSQUIB-SYNC -1 " + n1 + "\nSQUIB-SYNC  " + n1 + "\nSQUIB-SYNC 99999999999999999999 " + n1 + "\n", nil},
		"a nonce that is short, long or upper":  {syncLine(n1[1:]) + syncLine(n1+"0") + syncLine(strings.ToUpper(n1)) + syncLine(n1[1:]+"g"), nil},
		"a carriage return":                     {"SQUIB-SYNC 1 " + n1 + "\r\n", nil},
		"a field too many":                      {"SQUIB-SYNC 1 " + n1 + " x\n", nil},
		"the guest's own OK":                    {okLine(n1) + goLine(n1), nil},
		"a GO that no preface follows":          {syncLine(n1) + goLine(n1) + syncLine(n2) + goLine(n2) + clientPreface, []string{okLine(n1), okLine(n2), "start:"}},
		"a GO that half a preface follows":      {syncLine(n1) + goLine(n1) + clientPreface[:17] + syncLine(n2), []string{okLine(n1), okLine(n2)}},
		"a GO is good once":                     {syncLine(n1) + goLine(n1) + "x" + goLine(n1) + clientPreface, []string{okLine(n1)}},
		"an endless line":                       {strings.Repeat(syncLine(n1)[:45], 5000) + strings.Repeat("x", 200) + "\n" + syncLine(n2), []string{okLine(n2)}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := scan(c.in); !slices.Equal(got, c.want) {
				t.Errorf("in one piece: got %.200q, want %q", got, c.want)
			}
			if got := scan(strings.Split(c.in, "")...); !slices.Equal(got, c.want) {
				t.Errorf("byte by byte: got %.200q, want %q", got, c.want)
			}
			random := rand.New(rand.NewSource(1))
			for range 20 {
				var chunks []string
				for rest := c.in; rest != ""; {
					n := min(len(rest), 1+random.Intn(60))
					chunks, rest = append(chunks, rest[:n]), rest[n:]
				}
				if got := scan(chunks...); !slices.Equal(got, c.want) {
					t.Fatalf("in pieces: got %.200q, want %q", got, c.want)
				}
			}
		})
	}
}

// After any bytes, a complete handshake is answered and starts a session.
func FuzzScanner(f *testing.F) {
	for _, seed := range []string{"", "\xff\xff", "SQUIB-", "SQUIB-GO 1 ", syncLine(n2), syncLine(n2) + goLine(n2), clientPreface, goLine(n2)[:20]} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, before []byte) {
		if strings.Contains(string(before), clientPreface) {
			t.Skip("may be a session of its own")
		}
		events := scan(string(before), syncLine(n1), goLine(n1), clientPreface+"x")
		if len(events) < 2 || events[len(events)-2] != okLine(n1) || events[len(events)-1] != "start:x" {
			t.Errorf("after %q: %q", before, events)
		}
	})
}

func TestFraming(t *testing.T) {
	frame := func(length int) string {
		return string([]byte{byte(length >> 16), byte(length >> 8), byte(length), 0, 0, 0, 0, 0, 1}) + strings.Repeat("p", length)
	}
	ok := frame(0) + frame(5) + frame(MaxFrame) + frame(17)
	over := frame(MaxFrame + 1)[:9]
	for _, size := range []int{1, 2, 3, 8, 9, 10, 13, 4096, 1 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			var f framing
			input := ok + over + "after"
			passed := 0
			for at := 0; at < len(input); at += size {
				piece := input[at:min(len(input), at+size)]
				good, next, overflow := f.advance([]byte(piece))
				if !overflow {
					passed += len(piece)
					continue
				}
				passed += good
				if string(f.header[:]) != over {
					t.Errorf("header %x", f.header)
				}
				if want := input[len(ok)+9:]; piece[next:] != want[:min(len(want), len(piece)-next)] {
					t.Errorf("the rest is %q", piece[next:])
				}
				if passed > len(ok)+8 || passed < len(ok) {
					t.Errorf("%d bytes passed, the frames have %d", passed, len(ok))
				}
				return
			}
			t.Error("not seen")
		})
	}
}
