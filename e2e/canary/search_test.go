package canary

import (
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A search that finds nothing says something only if it finds what is there.
func TestFind(t *testing.T) {
	s := secret("needle")
	for before := range 4 {
		hay := []byte(strings.Repeat("<", before) + string(s.Raw) + ">>>>")
		for form, text := range map[string]string{
			"plain":     string(hay),
			"base64":    base64.StdEncoding.EncodeToString(hay),
			"base64url": base64.RawURLEncoding.EncodeToString(hay),
			"hex":       hex.EncodeToString(hay),
			"HEX":       strings.ToUpper(hex.EncodeToString(hay)),
		} {
			if len(Find([]byte(text), s)) == 0 {
				t.Errorf("not found in %s after %d bytes", form, before)
			}
		}
	}
	if found := Find([]byte("hay, hay, needle-, hay"), s); len(found) > 0 {
		t.Errorf("found %v where it is not", found)
	}
}

func TestFindFiles(t *testing.T) {
	dir, s := t.TempDir(), secret("needle")
	if err := os.MkdirAll(filepath.Join(dir, "a/b"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"a/b/inside": "x" + string(s.Raw), "a/" + string(s.Raw): "", "a/other": "hay"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if found, err := FindFiles(dir, s); err != nil || len(found) != 2 {
		t.Errorf("found %v, %v; want it in one file and in one name", found, err)
	}
}
