package client_test

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"token.place/client"
)

func TestParseAlias(t *testing.T) {
	for s, want := range map[string][2]string{
		"gpt-5-chat-latest=pocket":      {"gpt-5-chat-latest", "pocket"},
		" gpt-4o = Qwen/Qwen3-8B ":      {"gpt-4o", "Qwen/Qwen3-8B"},
		"a=b=c":                         {"a", "b=c"},
		"a":                             {},
		"=b":                            {},
		"a=":                            {},
		"a=a":                           {},
		"a=" + strings.Repeat("x", 257): {},
		"a\x00=b":                       {},
	} {
		alias, model, err := client.ParseAlias(s)
		if (err == nil) != (want[0] != "") || err == nil && (alias != want[0] || model != want[1]) {
			t.Errorf("%q: %q, %q, %v", s, alias, model, err)
		}
	}
}

func TestLoadAliases(t *testing.T) {
	path := filepath.Join(t.TempDir(), "aliases")
	load := func(text string) (map[string]string, error) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return client.LoadAliases(path)
	}
	got, err := load("# ours\n\ngpt-4o = pocket\r\n\t gpt-5-chat-latest=pocket\n  # end")
	if want := map[string]string{"gpt-4o": "pocket", "gpt-5-chat-latest": "pocket"}; err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	for text, want := range map[string]string{
		"a=b\nc":                             `line 2: alias "c" has no =`,
		"a=b\n# x\na=c":                      `line 3: alias "a" is already in line 1`,
		"a=b\nb=c":                           `line 1: alias "a" means "b", which is an alias itself`,
		"a=b\n=":                             "line 2: an alias needs a name on both sides",
		"a=b\n" + strings.Repeat("x", 1<<17): `line 2: alias "xxx`,
		strings.Repeat("#\n", 1<<19) + "a":   "more than 1048576 bytes",
	} {
		if _, err := load(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
	if _, err := client.LoadAliases(path + ".none"); err == nil {
		t.Error("a file that is not there loads")
	}
}

func FuzzAliases(f *testing.F) {
	for _, s := range []string{"a=b", "# x\na = b\r\n", "a=b\nb=c", "=", "a", "\x00=\xff", strings.Repeat("a=b\n", 3)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		aliases, err := client.ReadAliases(strings.NewReader(s))
		if err != nil {
			if !strings.HasPrefix(err.Error(), "line ") && len(s) < 1<<20 {
				t.Errorf("no line in %v", err)
			}
			return
		}
		var again strings.Builder
		for alias, model := range aliases {
			again.WriteString(alias + "=" + model + "\n")
		}
		got, err := client.ReadAliases(strings.NewReader(again.String()))
		if err != nil || !maps.Equal(got, aliases) {
			t.Errorf("%q gives %q, which gives %q, %v", s, aliases, got, err)
		}
	})
}
