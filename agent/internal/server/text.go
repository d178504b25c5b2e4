package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// text is a string of any bytes but NUL. In JSON, bytes that are not UTF-8 are the lone surrogates
// \udc80 to \udcff, as in Python's surrogateescape. encoding/json would replace both by U+FFFD.
type text string

// UnmarshalJSON implements json.Unmarshaler.
func (t *text) UnmarshalJSON(literal []byte) error {
	s, err := unquote(literal)
	*t = text(s)
	return err
}

// MarshalJSON implements json.Marshaler.
func (t text) MarshalJSON() ([]byte, error) { return appendQuoted(nil, string(t)), nil }

// textMap is a JSON object with text values.
type textMap map[string]string

// UnmarshalJSON implements json.Unmarshaler.
func (m *textMap) UnmarshalJSON(object []byte) error {
	*m = nil
	if string(object) == "null" {
		return nil
	}
	decoder := json.NewDecoder(bytes.NewReader(object))
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		return errors.New("not an object")
	}
	*m = textMap{}
	for decoder.More() {
		start := decoder.InputOffset()
		if _, err := decoder.Token(); err != nil {
			return err
		}
		key, err := unquote(bytes.TrimLeft(object[start:decoder.InputOffset()], ", \t\r\n"))
		if err != nil {
			return err
		}
		var value text
		if err := decoder.Decode(&value); err != nil {
			return err
		}
		(*m)[key] = string(value)
	}
	return nil
}

// MarshalJSON implements json.Marshaler.
func (m textMap) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i, key := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendQuoted(b, key), ':')
		b = appendQuoted(b, m[key])
	}
	return append(b, '}'), nil
}

var (
	errNotString = errors.New("not a string")
	errNUL       = errors.New("string contains a NUL")
	errSurrogate = errors.New("string contains a surrogate outside U+DC80 to U+DCFF")
	errNotUTF8   = errors.New("string is not UTF-8")
)

// unquote decodes a JSON string literal, which must be well-formed. It rejects any other JSON
// value.
func unquote(literal []byte) (string, error) {
	if len(literal) < 2 || literal[0] != '"' || literal[len(literal)-1] != '"' {
		return "", errNotString
	}
	body := literal[1 : len(literal)-1]
	if !utf8.Valid(body) {
		return "", errNotUTF8
	}
	if bytes.IndexByte(body, '\\') < 0 {
		return string(body), nil
	}
	out := make([]byte, 0, len(body))
	for len(body) > 0 {
		if body[0] != '\\' {
			out = append(out, body[0])
			body = body[1:]
			continue
		}
		if len(body) < 2 {
			return "", errNotString
		}
		if body[1] != 'u' {
			c, ok := simpleEscape(body[1])
			if !ok {
				return "", errNotString
			}
			out = append(out, c)
			body = body[2:]
			continue
		}
		r, ok := hexRune(body)
		if !ok {
			return "", errNotString
		}
		body = body[6:]
		switch {
		case r == 0:
			return "", errNUL
		case !utf16.IsSurrogate(r):
			out = utf8.AppendRune(out, r)
		case r >= 0xdc80 && r <= 0xdcff:
			out = append(out, byte(r))
		default:
			low, _ := hexRune(body)
			pair := utf16.DecodeRune(r, low)
			if pair == utf8.RuneError {
				return "", errSurrogate
			}
			out = utf8.AppendRune(out, pair)
			body = body[6:]
		}
	}
	return string(out), nil
}

func simpleEscape(c byte) (byte, bool) {
	switch c {
	case '"', '\\', '/':
		return c, true
	case 'b':
		return '\b', true
	case 'f':
		return '\f', true
	case 'n':
		return '\n', true
	case 'r':
		return '\r', true
	case 't':
		return '\t', true
	}
	return 0, false
}

// hexRune parses a \uXXXX escape at the start of b.
func hexRune(b []byte) (rune, bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	v, err := strconv.ParseUint(string(b[2:6]), 16, 16)
	return rune(v), err == nil
}

// appendQuoted appends s as a JSON string literal.
func appendQuoted(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			b = append(b, '\\', 'u', 'd', 'c', hex[s[i]>>4], hex[s[i]&15])
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r < ' ' || r == 0x7f:
			b = append(b, '\\', 'u', '0', '0', hex[r>>4], hex[r&15])
		default:
			b = append(b, s[i:i+size]...)
		}
		i += size
	}
	return append(b, '"')
}
