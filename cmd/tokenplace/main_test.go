package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
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
