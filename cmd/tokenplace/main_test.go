package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"testing"

	"token.place/internal/memnet"
	"token.place/openai"
)

var update = flag.Bool("update", false, "write what the commands print into testdata")

// TestScripts runs the console transcripts in testdata. A line "$ tokenplace …" is
// run; what follows is what it prints on standard output and standard error and
// "[exit N]" if N is not 0. $TMP is an empty folder and a leading NAME=value goes
// into the environment.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("scripts: %v, %v", files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			script, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := transcript(t, string(script))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(script) {
				t.Errorf("%s: run go test ./cmd/tokenplace -update if this is meant:\n%s", file, firstDifference(string(script), got))
			}
		})
	}
}

// transcript runs the commands of a script and returns it with what they print.
func transcript(t *testing.T, script string) string {
	tmp := t.TempDir()
	var out strings.Builder
	for _, line := range strings.Split(strings.TrimSuffix(script, "\n"), "\n") {
		if strings.HasPrefix(line, "# ") {
			fmt.Fprintln(&out, line)
			continue
		}
		command, ok := strings.CutPrefix(line, "$ ")
		if !ok {
			continue
		}
		fmt.Fprintln(&out, line)
		out.WriteString(runLine(strings.ReplaceAll(command, "$TMP", tmp), tmp))
	}
	return out.String()
}

var fields = regexp.MustCompile(`'[^']*'|\S+`)

func runLine(command, tmp string) string {
	env := map[string]string{}
	args := fields.FindAllString(command, -1)
	for i := range args {
		args[i] = strings.Trim(args[i], "'")
	}
	for len(args) > 0 && args[0] != "tokenplace" {
		name, value, _ := strings.Cut(args[0], "=")
		env[name], args = value, args[1:]
	}
	var out bytes.Buffer
	status := run(context.Background(), streams{strings.NewReader(""), &out, &out, func(n string) string { return env[n] }}, args[1:])
	text := strings.ReplaceAll(out.String(), tmp, "$TMP")
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	if status != 0 {
		text += fmt.Sprintf("[exit %d]\n", status)
	}
	return text
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(w), len(g)) {
		if w[i] != g[i] {
			return fmt.Sprintf("line %d:\n- %s\n+ %s", i+1, w[i], g[i])
		}
	}
	return fmt.Sprintf("%d lines became %d", len(w), len(g))
}

// Every command explains itself on standard output, names all its flags and
// shows an example where it takes any.
func TestHelp(t *testing.T) {
	for name := range commands {
		var out, errs bytes.Buffer
		status := run(t.Context(), streams{strings.NewReader(""), &out, &errs, func(string) string { return "" }},
			append(strings.Fields(name), "-h"))
		text := out.String()
		if status != 0 || errs.Len() > 0 || !strings.HasPrefix(text, "Usage:\n") {
			t.Errorf("%s -h: status %d, %q, %q", name, status, text, errs.String())
		}
		if !strings.Contains(text, "tokenplace "+name) {
			t.Errorf("%s -h does not show the command", name)
		}
		for i, line := range strings.Split(text, "\n") {
			if len(line) > 88 {
				t.Errorf("%s -h: line %d has %d characters", name, i+1, len(line))
			}
		}
	}
}

// Errors and answers come from other people's computers; a terminal obeys them.
func TestNothingMovesTheTerminal(t *testing.T) {
	evil := "\x1b]52;c;ZXZpbA==\x07\x1b[2J\u009b2J\r\x08\x7fok\n\tü"
	if got := printable(evil); got != "]52;c;ZXZpbA==[2J2Jok\n\tü" {
		t.Errorf("printable let through %q", got)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		openai.WriteError(w, 500, openai.Error{Message: evil})
	})}
	mem := memnet.New()
	ln, _ := mem.Listen("local:80")
	go srv.Serve(ln)
	defer srv.Close()
	c := &chat{http: &http.Client{Transport: &http.Transport{DialContext: mem.Dial}}, base: "http://local", model: "m"}
	commands["test"] = func(ctx context.Context, s streams, _ []string) error {
		_, err := c.ask(ctx, "hello", s.out)
		return err
	}
	defer delete(commands, "test")
	var out bytes.Buffer
	if status := run(t.Context(), streams{strings.NewReader(""), &out, &out, os.Getenv}, []string{"test"}); status != 1 || strings.ContainsAny(out.String(), "\x1b\u009b\x07") {
		t.Errorf("status %d, printed %q", status, out.String())
	}
}

// Flags may stand behind the prompt; after -- everything is prompt.
func TestFlagsBetweenArguments(t *testing.T) {
	f := newFlags(streams{getenv: func(string) string { return "" }}, "x", "")
	model := f.String("model", "", "")
	asJSON := f.Bool("json", false, "")
	words, err := f.parse([]string{"what", "--model", "m", "is", "--json", "--", "--this", "-h"}, true)
	if err != nil || *model != "m" || !*asJSON || strings.Join(words, " ") != "what is --this -h" {
		t.Errorf("words %q, model %q, json %v, %v", words, *model, *asJSON, err)
	}
}

func TestTuneGC(t *testing.T) {
	percent := func() uint64 {
		sample := []metrics.Sample{{Name: "/gc/gogc:percent"}}
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	t.Setenv("GOGC", "100")
	if tuneGC(); percent() != 100 {
		t.Errorf("GOGC is set and the collector was tuned to %d %%", percent())
	}
	os.Unsetenv("GOGC")
	if tuneGC(); percent() != maxPercent {
		t.Errorf("a small heap is collected at %d %%, want %d", percent(), maxPercent)
	}
}
