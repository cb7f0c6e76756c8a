package pocket

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// The model's control tokens, as its chat template spells them.
const (
	toolsTag, toolTag, toolCall = "<|tools|>", "<|tool|>", "<tool_call>"
)

const (
	maxWords   = 200 // of a message that arguments are sought in
	maxSpan    = 8   // words in one argument
	maxDepth   = 8   // of values within arguments
	maxOptions = 1000
	maxForm    = 64 << 10 // bytes, more than the context can hold
)

// A tool is a function the model may call.
type tool struct {
	name       string
	parameters schema
}

// A schema is what pocket heeds of a JSON schema. It fills the properties that
// are required, or all of them when none is said to be.
type schema struct {
	Type       json.RawMessage
	Properties properties
	Required   []string
	Enum       []json.RawMessage
	Const      json.RawMessage
	Items      json.RawMessage // a schema
}

// properties keeps the order they were written in, which a map would lose.
type properties []property

type property struct {
	name   string
	schema json.RawMessage // read only where it is used: depth costs nothing before
}

func (ps *properties) UnmarshalJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if t, err := d.Token(); err != nil || t == nil {
		return err
	} else if t != json.Delim('{') {
		return &json.UnmarshalTypeError{Value: "value", Field: "properties", Type: reflect.TypeFor[map[string]any]()}
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return err
		}
		p := property{name: name.(string)}
		if err := d.Decode(&p.schema); err != nil {
			return err
		}
		*ps = append(*ps, p)
	}
	return nil
}

// kind returns the schema's type: the first of several, "" when it has none.
func (s *schema) kind() string {
	var one string
	var many []string
	if json.Unmarshal(s.Type, &one) != nil && json.Unmarshal(s.Type, &many) == nil && len(many) > 0 {
		one = many[0]
	}
	if one == "" && len(s.Properties) > 0 {
		return "object"
	}
	return one
}

// A blank is a place in otherwise fixed text where the model has a choice.
type blank struct {
	before  string // the fixed text that leads to it
	options []string
}

// A form is the JSON of a tool's arguments with its blanks; after ends it.
type form struct {
	said   string   // where strings and numbers come from
	spans  []string // of said, once they are needed
	blanks []blank
	after  string
	size   int // bytes of fixed text
}

func (f *form) put(options []string) {
	f.size += len(f.after)
	f.blanks = append(f.blanks, blank{f.after, options})
	f.after = ""
}

// fill adds a value of the given schema. One that cannot be read is as none at
// all, and a value of no type is a string.
func (f *form) fill(raw json.RawMessage, depth int) {
	var s schema
	if json.Unmarshal(raw, &s) != nil {
		s = schema{}
	}
	if len(s.Const) > 0 {
		s.Enum = []json.RawMessage{s.Const}
	}
	var options []string
	for _, e := range s.Enum[:min(maxOptions, len(s.Enum))] {
		var b bytes.Buffer
		if json.Compact(&b, e) == nil {
			options = append(options, b.String())
		}
	}
	switch kind := s.kind(); {
	case len(options) > 0:
		f.put(options)
	case kind == "object":
		f.object(&s, depth)
	case kind == "array" && len(s.Items) > 0 && depth < maxDepth:
		f.after += "["
		f.fill(s.Items, depth+1)
		f.after += "]"
	case kind == "array":
		f.after += "[]"
	case kind == "boolean":
		f.put([]string{"true", "false"})
	case kind == "null":
		f.after += "null"
	case kind == "integer" || kind == "number":
		f.put(numbers(f.said, kind == "integer"))
	default:
		if f.spans == nil {
			f.spans = spans(f.said)
		}
		f.after += `"`
		f.put(f.spans)
		f.after = `"`
	}
}

func (f *form) object(s *schema, depth int) {
	f.after += "{"
	wanted := map[string]bool{}
	for _, name := range s.Required {
		wanted[name] = true
	}
	comma := ""
	for _, p := range s.Properties {
		if len(wanted) > 0 && !wanted[p.name] {
			continue
		}
		if depth >= maxDepth || f.size+len(f.after) > maxForm {
			break
		}
		f.after += comma + quote(p.name) + ": "
		f.fill(p.schema, depth+1)
		comma = ", "
	}
	f.after += "}"
}

// quote returns s as a JSON string, its characters as they are.
func quote(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.Encode(s) // a string and a buffer: cannot fail
	return strings.TrimSuffix(b.String(), "\n")
}

// spans returns, as JSON without its quotes, each run of up to maxSpan words of
// said, without the punctuation around it.
func spans(said string) []string {
	var words [][2]int // from and to
	from := -1
	for i, r := range said + " " {
		if blank := unicode.IsSpace(r); !blank && from < 0 {
			from = i
		} else if blank && from >= 0 {
			words, from = append(words, [2]int{from, i}), -1
		}
	}
	words = words[max(0, len(words)-maxWords):]
	seen, out := map[string]bool{}, []string{}
	for i := range words {
		for j := i; j < min(i+maxSpan, len(words)); j++ {
			s := strings.Trim(said[words[i][0]:words[j][1]], `"'()[]{}<>.,;:!?`)
			if s != "" && !seen[s] {
				seen[s] = true
				q := quote(s)
				out = append(out, q[1:len(q)-1])
			}
		}
	}
	if len(out) == 0 {
		out = append(out, "")
	}
	return out
}

var numeral = regexp.MustCompile(`-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,18})?`)

// numbers returns the numbers in said; when it has none, the digits.
func numbers(said string, whole bool) []string {
	var out []string
	for _, n := range numeral.FindAllString(said, maxWords) {
		if !whole || !strings.Contains(n, ".") {
			out = append(out, n)
		}
	}
	if len(out) == 0 {
		for d := range 10 {
			out = append(out, strconv.Itoa(d))
		}
	}
	return out
}

var errFull = errors.New("no room for another token")

// callTool generates a call. Its JSON is laid down by the tool's schema, so
// that a call which is not cut short always parses; the model chooses the tool
// and the values.
func (g *generation) callTool() (string, error) {
	err := g.writeCall()
	if err == errFull {
		return finishLength, nil
	}
	return finishTools, err
}

func (g *generation) writeCall() error {
	if err := g.accept(g.s.m.vocab.controls[toolCall]); err != nil {
		return err
	}
	names := make([]string, len(g.p.tools))
	for i, t := range g.p.tools {
		names[i] = t.name
	}
	const lead = `", "arguments": `
	ignore := func(string) error { return nil }
	i, over, err := g.choose(blank{`{"name": "`, names}, lead+"{", ignore)
	if err != nil {
		return err
	}
	if err := g.emit(delta{call: names[i]}); err != nil {
		return err
	}

	var t text
	skip := len(lead)
	pass := func(more string) error {
		n := min(skip, len(more))
		skip -= n
		if show, _ := t.add(more[n:]); show != "" {
			return g.emit(delta{arguments: show})
		}
		return nil
	}
	if err := pass(over); err != nil {
		return err
	}
	f := form{said: g.p.said, after: lead}
	f.object(&g.p.tools[i].parameters, 0)
	f.put([]string{""})
	for i, b := range f.blanks {
		after := ""
		if i+1 < len(f.blanks) {
			after = f.blanks[i+1].before
		}
		b.before = b.before[len(over):]
		if _, over, err = g.choose(b, after, pass); err != nil {
			return err
		}
	}
	return nil
}

// choose has the model write b.before, one of b.options and then, if after is
// not empty, at least one byte of it, which tells where the option ended. It
// returns which option that was and how much of after is written. The model is
// not held to the borders between these, so it can use the tokens it was
// taught. Each token's bytes go to pass.
func (g *generation) choose(b blank, after string, pass func(string) error) (option int, over string, err error) {
	vocab := g.s.m.vocab
	live := make([]int, len(b.options)) // the options it may still be
	for i := range live {
		live[i] = i
	}
	written := 0
	enough := len(b.before) + min(1, len(after)) // and the option's length
	var allowed []int
	for written < enough+len(b.options[live[0]]) {
		if g.full() {
			return 0, "", errFull
		}
		allowed = allowed[:0]
		last := ""
		for _, i := range live {
			next := cut(written, vocab.longest, b.before, b.options[i], after)
			if next != last {
				allowed = vocab.prefixes(allowed, next)
			}
			last = next
		}
		slices.Sort(allowed)
		allowed = slices.Compact(allowed)
		id := g.pick(allowed)
		piece := vocab.pieces[id]
		live = slices.DeleteFunc(live, func(i int) bool { return cut(written, len(piece), b.before, b.options[i], after) != piece })
		written += len(piece)
		if err := pass(piece); err != nil {
			return 0, "", err
		}
		if err := g.accept(id); err != nil {
			return 0, "", err
		}
	}
	return live[0], after[:written-len(b.before)-len(b.options[live[0]])], nil
}

// cut returns up to n bytes of the parts, taken as one text, from an offset on.
func cut(from, n int, parts ...string) string {
	out := ""
	for _, p := range parts {
		if from < len(p) && len(out) < n {
			out += p[from:min(len(p), from+n-len(out))]
		}
		from = max(0, from-len(p))
	}
	return out
}
