package client

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"token.place/openai"
)

// maxAliases bounds a file of aliases, in bytes.
const maxAliases = 1 << 20

// ParseAlias reads "alias=model", as in gpt-5-chat-latest=pocket. Space around
// either is left out; the alias is what stands before the first "=".
func ParseAlias(s string) (alias, model string, err error) {
	alias, model, ok := strings.Cut(s, "=")
	if !ok {
		return "", "", fmt.Errorf("alias %q has no =: write alias=model, as in gpt-5-chat-latest=pocket", clip(s))
	}
	alias, model = strings.TrimSpace(alias), strings.TrimSpace(model)
	return alias, model, checkAlias(alias, model)
}

func checkAlias(alias, model string) error {
	switch {
	case alias == "" || model == "":
		return errors.New("an alias needs a name on both sides of the =, as in gpt-5-chat-latest=pocket")
	case !openai.ValidID(alias) || !openai.ValidID(model):
		return fmt.Errorf("alias %q: names have at most 256 bytes and no control characters", clip(alias))
	case alias == model:
		return fmt.Errorf("alias %q means itself", clip(alias))
	}
	return nil
}

// LoadAliases reads a file with one "alias = model" in each line. Empty lines
// and lines that start with # do not count. Whatever else is wrong is an error
// with its line number, so that a slip never sends a request to another model.
func LoadAliases(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read aliases: %w", err)
	}
	defer f.Close()
	aliases, err := readAliases(f)
	if err != nil {
		return nil, fmt.Errorf("read aliases: %s: %w", path, err)
	}
	return aliases, nil
}

func readAliases(r io.Reader) (map[string]string, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxAliases+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxAliases {
		return nil, fmt.Errorf("more than %d bytes", maxAliases)
	}
	aliases, at := map[string]string{}, map[string]int{}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		alias, model, err := ParseAlias(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if at[alias] > 0 {
			return nil, fmt.Errorf("line %d: alias %q is already in line %d", n, alias, at[alias])
		}
		aliases[alias], at[alias] = model, n
	}
	for alias, model := range aliases {
		if err := checkChain(aliases, alias, model); err != nil {
			return nil, fmt.Errorf("line %d: %w", at[alias], err)
		}
	}
	return aliases, nil
}

// checkChain refuses an alias of an alias: which model an app gets can be read
// off one line.
func checkChain(aliases map[string]string, alias, model string) error {
	if _, chain := aliases[model]; chain {
		return fmt.Errorf("alias %q means %q, which is an alias itself: name the model", alias, model)
	}
	return nil
}

// clip keeps a long string from filling an error.
func clip(s string) string {
	if len(s) > 60 {
		return s[:60] + "…"
	}
	return s
}
