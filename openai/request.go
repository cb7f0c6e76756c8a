package openai

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"strings"
	"unicode/utf8"
)

const (
	// maxDepth bounds how deep a request's JSON nests. Tool schemas reach a few
	// dozen; what is deeper is meant for somebody's stack.
	maxDepth = 256
	// maxHashed is how much of a text counts for Request.Conversation, in bytes.
	maxHashed = 16 << 10
)

// Request is what we need to know of a request's body.
type Request struct {
	Model  string // "" when the body names none
	Stream bool   // the answer is asked for as server-sent events

	model        span // of the model's value; empty when there is none
	form         bool // the body is multipart/form-data
	conversation string
}

// span is a part of a body, as byte offsets.
type span struct{ start, end int }

func (s span) of(b []byte) []byte { return b[s.start:s.end] }

// Peek finds what routing needs in a request's body, and checks that every
// parser after this one will find the same: one JSON object of valid UTF-8 (RFC
// 8259) without anything after it, or multipart/form-data (RFC 7578); the
// fields that are looked at not repeated, not even in other letter case, since
// some engines ignore it. An empty body is an empty Request. A content type
// other than multipart/form-data is taken as JSON, because curl -d says
// application/x-www-form-urlencoded.
//
// The error says what to mend and where, and can be shown to the caller; it
// quotes nothing of the body.
func Peek(contentType string, body []byte) (Request, error) {
	if len(body) == 0 {
		return Request{}, nil
	}
	if media, _, _ := strings.Cut(contentType, ";"); strings.EqualFold(strings.TrimSpace(media), "multipart/form-data") {
		return peekForm(contentType, body)
	}
	return peekJSON(body)
}

// WithModel returns a copy of body, the one that was peeked at, that asks for
// model instead. All bytes but the model's value stay what they are. A body
// that names no model, or a model that is not a ValidID, gives body itself.
func (r Request) WithModel(body []byte, model string) []byte {
	if r.model == (span{}) || !ValidID(model) {
		return body
	}
	value := []byte(model)
	if !r.form {
		value, _ = json.Marshal(model) // a string cannot fail
	}
	out := make([]byte, 0, len(body)-(r.model.end-r.model.start)+len(value))
	out = append(out, body[:r.model.start]...)
	out = append(out, value...)
	return append(out, body[r.model.end:]...)
}

// Conversation is the same for all turns of one conversation and differs
// between conversations: a hash of the instructions and of the first thing the
// user said. It is "" when the body has neither. It is for choosing a node,
// inside one process: whoever sees it can test a guess of what was said.
func (r Request) Conversation() string { return r.conversation }

// fields are the names Peek looks at. The order is that of the found array in
// peekJSON.
var fields = [...]string{"model", "stream", "messages", "input", "prompt", "system", "instructions"}

const (
	fieldModel = iota
	fieldStream
	fieldMessages
	fieldInput
	fieldPrompt
	fieldSystem
	fieldInstructions
)

func peekJSON(body []byte) (Request, error) {
	if err := checkJSON(body); err != nil {
		return Request{}, err
	}
	start := skipSpace(body, 0)
	if body[start] != '{' {
		return Request{}, errors.New("the request body must be a JSON object")
	}
	var found [len(fields)]span
	for key, value := range members(body, start) {
		for i, name := range fields {
			if !bytes.EqualFold(key, []byte(name)) {
				continue
			}
			if string(key) != name {
				return Request{}, fmt.Errorf("the field before byte %d must be spelt %q, in lower case", value.start, name)
			}
			if found[i] != (span{}) {
				return Request{}, fmt.Errorf("the field %q is there twice, again before byte %d", name, value.start)
			}
			found[i] = value
		}
	}

	r := Request{model: found[fieldModel]}
	if v := r.model.of(body); len(v) > 0 && string(v) != "null" {
		if v[0] != '"' || json.Unmarshal(v, &r.Model) != nil {
			return Request{}, errors.New(`the field "model" must be a string`)
		}
		if r.Model != "" && !ValidID(r.Model) {
			return Request{}, errBadModel
		}
	}
	switch string(found[fieldStream].of(body)) {
	case "true":
		r.Stream = true
	case "false", "null", "":
	default:
		return Request{}, errors.New(`the field "stream" must be true or false`)
	}
	r.conversation = conversation(body, found)
	return r, nil
}

var errBadModel = fmt.Errorf("the model's id must be at most %d bytes of printable characters", maxID)

// checkJSON accepts exactly one JSON value that the functions below can walk.
func checkJSON(body []byte) error {
	if !utf8.Valid(body) {
		at := 0
		for {
			r, size := utf8.DecodeRune(body[at:])
			if r == utf8.RuneError && size <= 1 {
				return fmt.Errorf("the request body is not valid UTF-8 at byte %d", at)
			}
			at += size
		}
	}
	if !json.Valid(body) {
		var syntax *json.SyntaxError
		if !errors.As(json.Unmarshal(body, new(struct{})), &syntax) {
			return errors.New("the request body is not valid JSON")
		}
		// An offset past the end means that more was expected.
		if syntax.Offset >= int64(len(body)) {
			return fmt.Errorf("the request body is not valid JSON: it goes wrong at its end, byte %d", syntax.Offset)
		}
		return fmt.Errorf("the request body is not valid JSON: see byte %d", syntax.Offset-1)
	}
	depth := 0
	for i := 0; i < len(body); {
		switch body[i] {
		case '"':
			i = skipString(body, i)
			continue
		case '{', '[':
			if depth++; depth > maxDepth {
				return fmt.Errorf("the request body nests deeper than %d levels at byte %d", maxDepth, i)
			}
		case '}', ']':
			depth--
		}
		i++
	}
	return nil
}

// conversation hashes the instructions and the first thing the user said.
func conversation(body []byte, found [len(fields)]span) string {
	h, said := sha256.New(), false
	for _, i := range []int{fieldSystem, fieldInstructions} {
		hashText(h, body, found[i])
	}
	for _, i := range []int{fieldMessages, fieldInput, fieldPrompt} {
		v := found[i]
		if v == (span{}) || said {
			continue
		}
		first := skipSpace(body, v.start+1)
		if i != fieldMessages && (body[v.start] != '[' || body[first] != '{' && body[first] != ']') {
			// A text, or an array of texts or of token numbers.
			said = hashRaw(h, body, v)
			continue
		}
		if body[v.start] != '[' {
			continue
		}
		for item := range elements(body, v.start) {
			role, content := message(body, item)
			switch role {
			case "system", "developer":
				hashText(h, body, content)
			case "user":
				said = hashText(h, body, content)
			}
			if said {
				break
			}
		}
	}
	if !said {
		return ""
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// message finds the role and the content of one element of a conversation.
func message(body []byte, item span) (role string, content span) {
	if body[item.start] != '{' {
		return "", span{}
	}
	for key, value := range members(body, item.start) {
		switch string(key) {
		case "role":
			role = strings.Trim(string(value.of(body)), `"`)
		case "content":
			content = value
		}
	}
	return role, content
}

// hashText adds a text, or the texts of an array of content parts, and reports
// whether there was any. Other fields of a part do not count: SDKs move their
// cache marks from turn to turn.
func hashText(h hash.Hash, body []byte, v span) (found bool) {
	if v == (span{}) || body[v.start] != '[' {
		return hashRaw(h, body, v)
	}
	for part := range elements(body, v.start) {
		text := part
		if body[part.start] == '{' {
			for key, value := range members(body, part.start) {
				if string(key) == "text" {
					text = value
				}
			}
		}
		found = hashRaw(h, body, text) || found
	}
	return found
}

// hashRaw adds a value as it is written, up to maxHashed, and reports whether
// there was one.
func hashRaw(h hash.Hash, body []byte, v span) bool {
	raw := v.of(body)
	if len(raw) == 0 || string(raw) == "null" {
		return false
	}
	fmt.Fprintf(h, "%d:", len(raw)) // so that two texts never look like another two
	h.Write(raw[:min(len(raw), maxHashed)])
	return true
}
