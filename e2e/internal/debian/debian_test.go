package debian

import "testing"

func TestFindsMirror(t *testing.T) {
	const stanzas = `Types: deb
# a snapshot
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
`
	for _, c := range []struct {
		find        func(text, suite string) string
		text, suite string
		want        string
	}{
		{stanza, stanzas, "bookworm", "http://mirror.example/debian"},
		{stanza, stanzas, "bookworm-security", "http://mirror.example/debian-security"},
		{stanza, stanzas, "trixie", ""},
		{oneLine, "deb http://mirror.example/debian bookworm main\n", "bookworm", "http://mirror.example/debian"},
		{oneLine, "# none\ndeb [signed-by=/a/b arch=amd64] http://mirror.example/debian trixie main contrib\n", "trixie", "http://mirror.example/debian"},
		{oneLine, "deb-src http://mirror.example/debian bookworm main\n", "bookworm", ""},
		{oneLine, "deb http://mirror.example/debian bookworm-updates main\n", "bookworm", ""},
	} {
		if got := c.find(c.text, c.suite); got != c.want {
			t.Errorf("mirror of %s: %q, want %q", c.suite, got, c.want)
		}
	}
}
