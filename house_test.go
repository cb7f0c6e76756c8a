package tokenplace_test

import (
	"bytes"
	"encoding/json"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "token.place"

// imports says what each package of the house imports of the house: exactly, so
// that a new edge is a decision and one that is gone is noticed. Floors are the
// order of the lines: a package stands above what it imports.
var imports = map[string]string{
	"openai":             "",
	"ohttp":              "",
	"tunnel":             "",
	"internal/telemetry": "",
	"internal/memnet":    "",

	"identity":      "",
	"engine":        "openai",
	"engine/pocket": "openai",

	"relay":  "tunnel identity internal/telemetry",
	"node":   "tunnel ohttp engine identity openai internal/telemetry",
	"client": "ohttp identity openai",

	"internal/devnet": "relay node client engine engine/pocket identity",
	"cmd/tokenplace":  "relay node client engine engine/pocket identity openai internal/devnet internal/telemetry",
	"":                "",
}

// unreachable lists what a package must not be able to reach, through any
// number of imports: code that is not linked cannot read a prompt. ohttp is
// banned rather than crypto/hpke, which crypto/tls links for its own use.
var unreachable = map[string]string{
	"relay":    "ohttp openai engine engine/pocket node client",
	"engine":   "identity tunnel ohttp",
	"tunnel":   "ohttp openai identity",
	"client":   "relay node tunnel engine",
	"node":     "relay client",
	"identity": "ohttp openai tunnel",
}

// modules are the direct dependencies, each with the reason for it.
var modules = map[string]string{
	"golang.org/x/crypto": "ChaCha20-Poly1305 for sealed answers: RFC 9458 needs it as a plain AEAD and the standard library keeps its own internal",
	"golang.org/x/term":   "IsTerminal: the standard library cannot tell a terminal from /dev/null",
	"golang.org/x/mod":    "sumdb/note: signed notes, the one way to sign; the Go checksum database runs on it",
}

type pkg struct {
	ImportPath   string
	Dir          string
	Imports      []string
	TestImports  []string
	XTestImports []string
	Deps         []string
	GoFiles      []string
}

func (p pkg) name() string { return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/") }

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,TestImports,XTestImports,Deps,GoFiles", "./...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var p pkg
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

func ours(path string) (string, bool) {
	if path == module {
		return "", true
	}
	return strings.CutPrefix(path, module+"/")
}

func TestImportsGoDownTheFloors(t *testing.T) {
	for _, p := range packages(t) {
		allowed, ok := imports[p.name()]
		if !ok {
			t.Errorf("package %s has no line in imports: give it one, or put its code into a package that has", p.name())
			continue
		}
		for _, dep := range strings.Fields(allowed) {
			if !slices.Contains(p.Imports, module+"/"+dep) {
				t.Errorf("%s no longer imports %s: take it out of imports", p.name(), dep)
			}
		}
		for _, path := range p.Imports {
			if dep, ok := ours(path); ok && !slices.Contains(strings.Fields(allowed), dep) {
				t.Errorf("%s imports %s; it may import: %s", p.name(), dep, allowed)
			}
			if dep, ok := ours(path); ok && dep == "internal/memnet" {
				t.Errorf("%s imports memnet, which is for tests", p.name())
			}
		}
	}
}

func TestBlindness(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range packages(t) {
		seen[p.name()] = true
		for _, ban := range strings.Fields(unreachable[p.name()]) {
			if slices.Contains(p.Deps, module+"/"+ban) {
				t.Errorf("%s can reach %s", p.name(), ban)
			}
		}
	}
	for name, bans := range unreachable {
		for _, n := range append(strings.Fields(bans), name) {
			if !seen[n] {
				t.Errorf("the rule for %s names %s, which does not exist", name, n)
			}
		}
	}
}

// Below the roles nothing logs: it returns errors. What needs a *log.Logger to
// silence net/http may make one.
func TestOnlyRolesLog(t *testing.T) {
	uses := regexp.MustCompile(`\blog\.[A-Za-z]+`)
	for _, p := range packages(t) {
		switch p.name() {
		case "relay", "node", "client", "internal/devnet", "cmd/tokenplace", "internal/telemetry":
			continue
		}
		if slices.Contains(p.Imports, "log/slog") {
			t.Errorf("%s imports log/slog", p.name())
		}
		if !slices.Contains(p.Imports, "log") {
			continue
		}
		for _, name := range p.GoFiles {
			src, err := os.ReadFile(filepath.Join(p.Dir, name))
			if err != nil {
				t.Fatal(err)
			}
			for _, use := range uses.FindAllString(string(src), -1) {
				if use != "log.New" && use != "log.Logger" {
					t.Errorf("%s/%s uses %s", p.name(), name, use)
				}
			}
		}
	}
}

func TestPackageComments(t *testing.T) {
	for _, p := range packages(t) {
		var with []string
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if f.Doc != nil {
				with = append(with, name)
			}
		}
		if len(p.GoFiles) > 0 && len(with) != 1 {
			t.Errorf("package %q has a package comment in %d files %v, want one", p.name(), len(with), with)
		}
	}
}

func TestGofmt(t *testing.T) {
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "node_modules" || d.Name() == ".git" || d.Name() == ".cache") {
			return fs.SkipDir
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		want, err := format.Source(src)
		if err != nil {
			t.Errorf("%s: %v", path, err)
		} else if !bytes.Equal(src, want) {
			t.Errorf("%s is not formatted: run gofmt -w %s", path, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestDirectModules(t *testing.T) {
	out, err := exec.Command("go", "mod", "edit", "-json").Output()
	if err != nil {
		t.Fatal(err)
	}
	var mod struct {
		Require []struct {
			Path     string
			Indirect bool
		}
	}
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	direct := map[string]bool{}
	for _, r := range mod.Require {
		if r.Indirect {
			continue
		}
		direct[r.Path] = true
		if modules[r.Path] == "" {
			t.Errorf("%s is a direct dependency without a reason in modules", r.Path)
		}
	}
	for path := range modules {
		if !direct[path] {
			t.Errorf("modules gives a reason for %s, which is not a direct dependency", path)
		}
	}
}
