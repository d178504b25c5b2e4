package server

import (
	"encoding/json"
	"maps"
	"testing"
	"unicode/utf8"

	"squib/agent/internal/process"
)

func TestUnquote(t *testing.T) {
	for literal, want := range map[string]string{
		`""`:                               "",
		`"plain"`:                          "plain",
		`"ä€😀"`:                            "ä€😀",
		`"\"\\\/\b\f\n\r\t"`:               "\"\\/\b\f\n\r\t",
		`"\u0041\u00e4\u20ac"`:             "Aä€",
		`"\ud83d\ude00"`:                   "😀",
		`"\uD83D\uDE00"`:                   "😀",
		`"\ud83d\udc80"`:                   "💀", // a pair before a byte
		`"\udc80"`:                         "\x80",
		`"\udcff"`:                         "\xff",
		`"\uDCFF"`:                         "\xff",
		`"a\udcc3\udca4b"`:                 "aäb", // bytes that happen to be UTF-8
		`"\udcf0\udc9f\udc98\udc80"`:       "😀",
		`"\\udc80"`:                        `\udc80`,
		`"\ud83d\ude00\udc80\ud83d\ude00"`: "😀\x80😀",
	} {
		if got, err := unquote([]byte(literal)); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", literal, got, err, want)
		}
		var again text
		if err := json.Unmarshal(appendQuoted(nil, want), &again); err != nil || string(again) != want {
			t.Errorf("%q and back: %q, %v", want, again, err)
		}
	}
	for _, literal := range []string{`"\u0000"`, `"\udc7f"`, `"\udc00"`, `"\udd00"`, `"\udfff"`, `"\ud800"`, `"\ud83dx"`, `"\ud83d\u0041"`, `"\ud83d\ud83d\ude00"`,
		"\"\xff\"", "\"\xed\xa0\x80\"", `1`, `null`, `["x"]`, `"\x"`, `"\u12"`, `"\`, `"`} {
		if got, err := unquote([]byte(literal)); err == nil {
			t.Errorf("%s: got %q, want an error", literal, got)
		}
	}
}

func FuzzText(f *testing.F) {
	f.Add("a\xff\x80ä😀\"\\\n\x7f")
	f.Fuzz(func(t *testing.T, s string) {
		literal := appendQuoted(nil, s)
		if !json.Valid(literal) || !utf8.Valid(literal) {
			t.Fatalf("%q is not JSON", literal)
		}
		got, err := unquote(literal)
		for i := range len(s) {
			if s[i] == 0 {
				if err == nil {
					t.Fatal("a NUL passed")
				}
				return
			}
		}
		if err != nil || got != s {
			t.Fatalf("%q came back as %q, %v", s, got, err)
		}
	})
}

func TestExecRequest(t *testing.T) {
	var q execRequest
	body := `{"argv": ["p", "\udcff"], "env": {"K\udc80" : "v\udc81", "":"", "a,b" :"\ud83d\ude00"}, "cwd": "/\udc82", "user": "u", "stdin": true, "timeout_ms": 1500, "later": {"x": []}}`
	if err := json.Unmarshal([]byte(body), &q); err != nil {
		t.Fatal(err)
	}
	spec, err := q.spec()
	if err != nil || spec.Argv[1] != "\xff" || spec.Cwd != "/\x82" || spec.User != "u" || !spec.Stdin || spec.Timeout.Milliseconds() != 1500 {
		t.Errorf("got %+v, %v", spec, err)
	}
	if want := map[string]string{"K\x80": "v\x81", "": "", "a,b": "😀"}; !maps.Equal(spec.Env, want) {
		t.Errorf("env %q", spec.Env)
	}
	var m textMap
	if b, err := json.Marshal(textMap(spec.Env)); err != nil || json.Unmarshal(b, &m) != nil || !maps.Equal(m, spec.Env) {
		t.Errorf("env and back: %q", m)
	}
	q = execRequest{}
	if err := json.Unmarshal([]byte(`{"login": true, "sudo": true, "background": true, "pty": {"rows": 1, "cols": 65535}}`), &q); err != nil {
		t.Fatal(err)
	}
	if spec, err := q.spec(); err != nil || !spec.Login || !spec.Sudo || !spec.Background || *spec.Terminal != (process.Size{Rows: 1, Cols: 65535}) {
		t.Errorf("got %+v, %v", spec, err)
	}
	for _, body := range []string{`{"argv":[]}`, `{}`, `{"shell":null}`, `{"argv":["x"],"shell":""}`, `{"argv":["x"],"timeout_ms":0}`, `{"argv":["x"],"timeout_ms":-5}`} {
		var q execRequest
		if err := json.Unmarshal([]byte(body), &q); err != nil {
			t.Errorf("%s: %v", body, err)
		}
		if _, err := q.spec(); err == nil {
			t.Errorf("%s was taken", body)
		}
	}
	for _, body := range []string{`{"argv":"x"}`, `{"argv":[1]}`, `{"argv":[null]}`, `{"argv":["\u0000"]}`, `{"env":[]}`, `{"env":{"a":1}}`, `{"env":"x"}`, `{"cwd":1}`,
		`{"stdin":1}`, `{"timeout_ms":"1"}`, `{"timeout_ms":1.5}`, `{"argv":["x"]`, `[]`, `{"user":null,"argv":["\ud800"]}`} {
		var q execRequest
		if err := json.Unmarshal([]byte(body), &q); err == nil {
			t.Errorf("%s was read", body)
		}
	}
}
